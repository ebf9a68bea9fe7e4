"""One try of one target: chosen, entered, heard until it commits, left; and who is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from msgspec.structs import replace

from llmg.core.context import Attempt, Context
from llmg.core.errors import FAILS_OVER, Failure, Kind, internal
from llmg.core.events import Batch, commits
from llmg.core.request import Request
from llmg.ports import Answering, Asked, Clock
from llmg.routing.models import Group, Target


def why_left(error: BaseException | None) -> Failure:
    """Why an answer was left before its end, by what was raised meanwhile."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Exception):
        return internal(error)
    return Failure(Kind.CANCELLED, "nobody waited for the end of the answer")


def _went_well(failure: Failure | None) -> bool | None:
    """Did the target? None: what the caller or we did says nothing of it."""
    if failure is None:
        return True
    return False if failure.kind in FAILS_OVER else None


class Trying:
    """Tries one target at a time. `choose`, `enter`, `until_commit`, `commit`, `leave`: in this order, each once a try.

    `events` is what it says from then on; `over`: the answer has been given to its end.
    """

    __slots__ = (
        "_asked",
        "_chosen",
        "_clock",
        "_context",
        "_group",
        "_inner",
        "_request",
        "_target",
        "_ticket",
        "attempt",
        "events",
        "over",
    )

    def __init__(self, request: Request, asked: Asked, context: Context, clock: Clock) -> None:
        """`asked` is what policies see of the request."""
        self._request = request
        self._asked = asked
        self._context = context
        self._clock = clock
        self._group: Group
        self._chosen = -1  # the target's place in the group
        self._target: Target
        self._ticket = 0  # of its health
        self._inner: Answering | None = None
        self.events: AsyncIterator[Batch]
        self.attempt: Attempt | None = None
        self.over = False

    def choose(self, group: Group, candidates: Sequence[int], now: float) -> int:
        """The target to try, of the group's `candidates`. From here on it counts as asked."""
        policy = group.policy
        chosen = self._chosen = policy.choose(candidates, self._asked)
        target = self._target = group.targets[chosen]
        self._group = group
        attempt = self.attempt = Attempt(
            provider=target.provider, model=target.model, started=now, group=group.name, policy=policy.kind
        )
        self._context.trail.append(attempt)
        self._ticket = target.health.begin()
        self.over = False
        policy.started(chosen)
        self._context.observer.attempt_started(self._context, attempt)
        return chosen

    async def enter(self) -> None:
        """Asks it. Raises Failure."""
        target, request = self._target, self._request
        if target.model != request.model:
            request = replace(request, model=target.model)
        inner = target.inner.open(request, self._context)
        self.events = await inner.__aenter__()
        self._inner = inner

    async def until_commit(self) -> Batch:
        """What it says up to its first content; of a whole answer, all of it. Raises Failure."""
        events: Batch = ()
        async for batch in self.events:
            events = [*events, *batch] if events else batch
            if self._request.stream and commits(batch):
                return events
        if not commits(events):
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the upstream's answer ended before it began")
        self.over = True
        return events

    def commit(self) -> float:
        """It is the one that answers. Seconds since it was chosen."""
        assert self.attempt is not None
        now = self.attempt.committed = self._clock.monotonic()
        took = now - self.attempt.started
        self._target.health.committed(self._ticket, now)
        self._group.policy.first_event(self._chosen, took)
        self._context.observer.committed(self._context, self.attempt)
        return took

    def settle(self, failure: Failure | None) -> None:
        """The try is over, if it was not yet: all who count are told."""
        attempt = self.attempt
        if attempt is None or attempt.ended is not None:
            return
        attempt.failure = failure
        now = attempt.ended = self._clock.monotonic()
        self._target.health.ended(self._ticket, now, failure)
        self._group.policy.ended(self._chosen, now - attempt.started, _went_well(failure))
        self._context.observer.attempt_ended(self._context, attempt)

    async def leave(self, failure: Failure | None) -> None:
        """Ends the try and the upstream call, where they have not ended."""
        inner, self._inner = self._inner, None
        self.settle(failure)
        if inner is not None:
            await inner.__aexit__(None, None, None)
