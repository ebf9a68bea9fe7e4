"""The router: a provider that asks a model's targets in turn until one commits to an answer.

Before commit, a failure that another target may not share moves on to the next. After it, never: a client does not get
a text twice. A unary answer commits when it is complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from llmg.core.context import Attempt, Context
from llmg.core.errors import FAILS_OVER, Failure, Kind, internal, not_implemented
from llmg.core.events import Batch, commits
from llmg.core.request import Embed, Request
from llmg.ports import Answering, Clock, Policy, Profile, Provider


class Target(Struct, frozen=True, kw_only=True):
    """One model of one provider."""

    provider: str
    model: str
    inner: Provider
    weight: float = 1.0
    profile: Profile = Profile()


class Group(Struct, frozen=True, kw_only=True):
    """A name that clients use, and the targets that may answer for it."""

    name: str
    targets: tuple[Target, ...]
    policy: Policy
    created: int = 0

    def profile(self) -> Profile:
        """What at least one of the targets can do."""
        return Profile(
            chat=any(t.profile.chat for t in self.targets),
            embed=any(t.profile.embed for t in self.targets),
            n=any(t.profile.n for t in self.targets),
        )


class Models:
    """The models by name. A declared model wins; else `PROVIDER/MODEL` reaches a declared provider's model."""

    def __init__(self, groups: Mapping[str, Group], providers: Mapping[str, Callable[[str], Target]]) -> None:
        """`providers` give a target for any model of theirs."""
        self._groups = groups
        self._providers = providers

    def declared(self) -> Sequence[Group]:
        """Those with a name of their own."""
        return tuple(self._groups.values())

    def find(self, name: str) -> Group:
        """The model of that name. Raises Failure (model_not_found)."""
        group = self._groups.get(name)
        return group if group is not None else self._by_provider(name)

    def _by_provider(self, name: str) -> Group:
        provider, slash, model = name.partition("/")
        make = self._providers.get(provider)
        if make is None or not slash or not model:
            raise Failure(Kind.MODEL_NOT_FOUND, f"the model '{name[:200]}' does not exist", param="model")
        return Group(name=name, targets=(make(model),), policy=_ONLY)


class _Only:
    def choose(self, candidates: Sequence[int], /) -> int:
        return candidates[0]


_ONLY = _Only()


class Router:
    """Answers from the targets of the request's model."""

    def __init__(self, models: Models, clock: Clock) -> None:
        self._models = models
        self._clock = clock

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        group = self._models.find(request.model)
        return _Routed(group, _able(group, request), request, context, self._clock)


def _able(group: Group, request: Request) -> list[int]:
    embed = isinstance(request, Embed)
    able = [i for i, t in enumerate(group.targets) if (t.profile.embed if embed else t.profile.chat)]
    if not able:
        raise not_implemented(f"{'embeddings' if embed else 'chat'} for the model '{group.name}'")
    return able


class _Routed:
    __slots__ = (
        "_attempt",
        "_clock",
        "_committed",
        "_context",
        "_events",
        "_group",
        "_inner",
        "_left",
        "_over",
        "_request",
    )

    def __init__(self, group: Group, left: list[int], request: Request, context: Context, clock: Clock) -> None:
        self._group = group
        self._left = left
        self._request = request
        self._context = context
        self._clock = clock
        self._inner: Answering | None = None
        self._events: AsyncIterator[Batch]
        self._attempt: Attempt
        self._committed = False
        self._over = False

    async def __aenter__(self) -> _Routed:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._over:
            await self._leave(None)
        elif isinstance(error, Failure):
            await self._leave(error)
        elif isinstance(error, Exception):
            await self._leave(internal(error))
        else:
            await self._leave(Failure(Kind.CANCELLED, "nobody waited for the end of the answer"))

    def __aiter__(self) -> _Routed:
        return self

    async def __anext__(self) -> Batch:
        if self._over:
            raise StopAsyncIteration
        if not self._committed:
            return await self._first()
        try:
            return await self._events.__anext__()
        except StopAsyncIteration:
            self._over = True
            raise
        except Failure as failure:
            self._attempt.failure = failure
            raise

    async def _first(self) -> Batch:
        while True:
            try:
                await self._enter()
                batch = await self._until_commit()
            except Failure as failure:
                await self._leave(failure)
                if failure.kind not in FAILS_OVER or not self._left:
                    raise
            else:
                self._committed = True
                self._context.observer.committed(self._context, self._attempt)
                return batch

    async def _enter(self) -> None:
        chosen = self._group.policy.choose(self._left)
        self._left.remove(chosen)
        target = self._group.targets[chosen]
        self._attempt = Attempt(provider=target.provider, model=target.model, started=self._clock.monotonic())
        self._context.trail.append(self._attempt)
        self._context.observer.attempt_started(self._context, self._attempt)
        request = self._request if target.model == self._request.model else replace(self._request, model=target.model)
        inner = target.inner.open(request, self._context)
        self._events = await inner.__aenter__()
        self._inner = inner

    async def _until_commit(self) -> Batch:
        events: Batch = ()
        async for batch in self._events:
            events = [*events, *batch] if events else batch
            if self._request.stream and commits(batch):
                return events
        if not commits(events):
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the upstream's answer ended before it began")
        self._over = True
        return events

    async def _leave(self, failure: Failure | None) -> None:
        inner, self._inner = self._inner, None
        attempt = self._context.trail[-1] if self._context.trail else None
        if attempt is not None and attempt.ended is None:
            attempt.failure = attempt.failure or failure
            attempt.ended = self._clock.monotonic()
            self._context.observer.attempt_ended(self._context, attempt)
        if inner is not None:
            await inner.__aexit__(None, None, None)
