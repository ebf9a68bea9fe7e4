"""Requests within the limits of their levels: a provider around the router.

Before a request is asked of anybody, it is counted with the tokens that it may take: those of its prompt, estimated,
and those that it allows for its answer (`max_tokens`, for each choice). When it is over, with those that it took:

| it                                      | took                                              |
|-----------------------------------------|---------------------------------------------------|
| was answered, with the upstream's count | what that says                                    |
| was answered without, or cut off        | prompt and answer so far, estimated               |
| was answered, with one beyond belief    | the same: see `believable`                        |
| failed before anything came             | nothing; but it was a request                     |
| was left before anything came           | the prompt, estimated, if a target had been asked |

Where none of its levels limits tokens, nobody counts them, and its events are not looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import structlog

from llmg.core.context import Context
from llmg.core.events import Batch, Delta
from llmg.core.levels import UNLIMITED, Level
from llmg.core.limits import LimitReached
from llmg.core.request import Embed, Request
from llmg.core.usage import Usage
from llmg.ports import Answering, Limiter, Provider, Reservation
from llmg.routing.policies.view import View

log = structlog.get_logger("llmg.limits")

ANSWER: Final = 256
"""Tokens of a choice that are expected where the request does not say how many it allows."""

UNSEEN: Final = 1_000_000
"""Tokens that a request may take besides what is seen of it: reasoning, templates, what its attachments hold."""

_CHARACTERS: Final = 4  # a token, as in the estimate of prompts
_BYTES: Final = 4  # a character has at most; and a token at least one
_MOST_DOUBTED: Final = 1000  # clients make names of targets up


def believable(tokens: int, estimated: int) -> bool:
    """Can that be what an upstream took for a prompt and an answer of so many tokens, by our estimate?

    What can be is believed, right or wrong: it is what will be paid for. What cannot is not to hold back all others of
    the levels above for minutes, be the upstream broken, or a tenant's own and hostile.
    """
    return 0 <= tokens <= UNSEEN + estimated * _CHARACTERS * _BYTES


class Limited:
    """A provider that is asked within the limits of `context.principal.levels`."""

    def __init__(self, inner: Provider, limiter: Limiter) -> None:
        self._inner = inner
        self._limiter = limiter
        self._doubted: set[str] = set()

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        levels = [level for level in context.principal.levels if level.limits is not UNLIMITED]
        if not levels:
            return self._inner.open(request, context)
        return _Counted(self._inner, self._limiter, self._doubt, levels, request, context)

    def _doubt(self, context: Context, tokens: int, estimated: int) -> None:
        """Says it, once of a target."""
        target = context.route
        if target not in self._doubted and len(self._doubted) < _MOST_DOUBTED:
            self._doubted.add(target)
            words = "an upstream counts tokens that cannot be: the estimate is taken instead"
            log.warning(words, target=target, counted=tokens, estimated=estimated, request_id=context.request_id)


class _Counted:
    __slots__ = (
        "_characters",
        "_context",
        "_doubt",
        "_events",
        "_inner",
        "_levels",
        "_limiter",
        "_prompt",
        "_provider",
        "_request",
        "_reservation",
        "_usage",
        "_words",
    )

    def __init__(
        self,
        provider: Provider,
        limiter: Limiter,
        doubt: Callable[[Context, int, int], None],
        levels: Sequence[Level],
        request: Request,
        context: Context,
    ) -> None:
        self._provider = provider
        self._limiter = limiter
        self._doubt = doubt
        self._levels = levels
        self._request = request
        self._context = context
        self._reservation: Reservation
        self._inner: Answering
        self._events: AsyncIterator[Batch]
        self._prompt = 0  # tokens; 0: nobody counts them
        self._characters = 0  # of the answer
        self._words = False  # did anything come?
        self._usage: Usage | None = None

    async def __aenter__(self) -> AsyncIterator[Batch]:
        self._reservation = await self._reserve()
        try:
            self._inner = self._provider.open(self._request, self._context)
            self._events = await self._inner.__aenter__()
        except BaseException as error:
            self._reservation.settle(self._taken(error))
            raise
        return self if self._prompt else self._events

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool | None:
        try:
            return await self._inner.__aexit__(kind, error, trace)  # type: ignore[arg-type]
        finally:
            self._reservation.settle(self._taken(error))

    def __aiter__(self) -> _Counted:
        return self

    async def __anext__(self) -> Batch:
        batch = await self._events.__anext__()
        self._words = self._words or bool(batch)
        for event in batch:
            if type(event) is Delta:
                self._characters += len(event.data)
            elif type(event) is Usage:
                self._usage = event
        return batch

    async def _reserve(self) -> Reservation:
        tokens = 0
        if any(level.limits.tokens is not None for level in self._levels):
            view = View(self._request, self._context)
            self._prompt = view.input_tokens
            answer = view.output_tokens
            tokens = self._prompt + (_expected(self._request) if answer is None else answer)
        try:
            reservation = await self._limiter.reserve(self._levels, tokens)
        except LimitReached as reached:
            self._context.rates = reached.rates
            raise
        self._context.rates = reservation.rates
        return reservation

    def _taken(self, error: BaseException | None) -> int:
        """The tokens that the request took. See the table above."""
        if not self._prompt:
            return 0
        if self._words:
            estimated = self._prompt + -(-self._characters // _CHARACTERS)
            if self._usage is None or not self._usage.final:
                return estimated
            counted = self._usage.total_tokens
            if believable(counted, estimated):
                return counted
            self._doubt(self._context, counted, estimated)
            return estimated
        if isinstance(error, Exception) or not self._context.trail:
            return 0
        return self._prompt


def _expected(request: Request) -> int:
    """Tokens of an answer whose length is not bounded. Vectors have none."""
    return 0 if isinstance(request, Embed) else ANSWER * request.n
