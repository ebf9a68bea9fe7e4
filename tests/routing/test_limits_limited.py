"""The wrapper: who is counted, with how many tokens, and that everything is settled, whoever leaves when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
from msgspec import UNSET
from structlog.testing import capture_logs

from llmg.core.context import ANONYMOUS, Attempt, Context, Principal
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch, Embedding, Embeddings, Result, Started, Whole
from llmg.core.levels import Level, Limits, Rate, Rates
from llmg.core.limits import LimitReached
from llmg.core.request import Chat, Embed, Message, Request, Sampling, Text
from llmg.core.usage import Usage
from llmg.ports import Answering, Reservation
from llmg.routing.limits.limited import ANSWER, UNSEEN, Limited
from llmg.routing.limits.local import Local
from llmg.testing.clocks import FakeClock
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.testing.scripted import Gate, Script, Scripted, saying

TOKENS = Level(name="tenants/acme", limits=Limits(requests=10, tokens=10_000, concurrent=3))
NO_TOKENS = Level(name="tenants/acme", limits=Limits(requests=10, concurrent=3))
PROMPT = 25  # tokens, estimated


def _chat(*, stream: bool = True, n: int = 1, max_tokens: int | None = None) -> Chat:
    return Chat(
        model="m",
        messages=(Message(role="user", parts=(Text("x" * 4 * PROMPT),)),),
        sampling=Sampling(max_tokens=UNSET if max_tokens is None else max_tokens),
        n=n,
        stream=stream,
    )


def _context(*levels: Level) -> Context:
    return a_context(principal=Principal(levels=(Level(), *levels)), trail=[])


class Watched:
    """A limiter that remembers what was reserved and how it was settled."""

    def __init__(self) -> None:
        self.local = Local(FakeClock())
        self.reserved: list[int] = []
        self.settled: list[int] = []
        self.levels: list[Sequence[Level]] = []

    async def reserve(self, levels: Sequence[Level], tokens: int, /) -> _Settling:
        """See `ports.Limiter`."""
        reservation = await self.local.reserve(levels, tokens)
        self.levels.append(levels)
        self.reserved.append(tokens)
        return _Settling(self, reservation)


class _Settling:
    def __init__(self, watched: Watched, inner: Reservation) -> None:
        self._watched = watched
        self._inner = inner

    @property
    def rates(self) -> Rates:
        """See `ports.Reservation`."""
        return self._inner.rates

    def settle(self, tokens: int, /) -> None:
        """See `ports.Reservation`."""
        self._watched.settled.append(tokens)
        self._inner.settle(tokens)


async def _asked(request: Request, *steps: Batch | Exception) -> tuple[int, int]:
    """What was reserved for a request, and how it was settled."""
    limiter = Watched()
    broken = any(isinstance(step, Exception) for step in steps)
    with pytest.raises(Failure, match="broken") if broken else nullcontext():
        await collect(Limited(Scripted(list(steps)), limiter), request, _context(TOKENS))
    (reserved,), (settled,) = limiter.reserved, limiter.settled
    return reserved, settled


BROKEN = Failure(Kind.UPSTREAM_ERROR, "broken")
SAID = saying("12345678", "1")  # nine characters, three tokens
COUNTED = saying("a", usage=Usage(input_tokens=7, output_tokens=5, reasoning_tokens=4))


@pytest.mark.parametrize(
    ("request_", "reserved"),
    [
        (_chat(), PROMPT + ANSWER),
        (_chat(n=3), PROMPT + 3 * ANSWER),
        (_chat(max_tokens=40), PROMPT + 40),
        (_chat(max_tokens=40, n=2), PROMPT + 80),
        (Embed(model="m", inputs=("x" * 40, tuple(range(10)))), 20),
    ],
)
async def test_what_is_reserved(request_: Request, reserved: int) -> None:
    assert (await _asked(request_, *SAID))[0] == reserved


@pytest.mark.parametrize(
    ("steps", "settled"),
    [
        (COUNTED, 12),
        (SAID, PROMPT + 3),
        ([*SAID[:2], BROKEN], PROMPT + 2),
        ([*SAID[:2], [Usage(input_tokens=1, output_tokens=1, final=False)], BROKEN], PROMPT + 2),
        ([*COUNTED, BROKEN], 12),
        (saying("1", usage=Usage(input_tokens=-1_000_000)), PROMPT + 1),
        (saying("1", usage=Usage(input_tokens=1, output_tokens=10**12)), PROMPT + 1),
        (saying("1", usage=Usage(output_tokens=UNSEEN)), UNSEEN),
        (saying("字" * 4_000_000, usage=Usage(output_tokens=12_000_000)), 12_000_000),
        ([BROKEN], 0),
        ([[], BROKEN], 0),
    ],
    ids=[
        "counted",
        "not counted",
        "cut",
        "cut with an interim count",
        "cut after its count",
        "counted below 0",
        "counted beyond belief",
        "counted with much that is not seen",
        "counted with a token for each byte",
        "failed",
        "waited",
    ],
)
async def test_what_it_took(steps: list[Batch | Exception], settled: int) -> None:
    assert (await _asked(_chat(), *steps))[1] == settled


async def test_an_upstream_that_counts_what_cannot_be_is_named_once() -> None:
    limited = Limited(Scripted(saying("1", usage=Usage(output_tokens=10**12))), Watched())
    with capture_logs() as logs:
        for model in ("m", "m", "n"):
            context = _context(TOKENS)
            context.trail.append(Attempt(provider="p", model=model, started=0.0))
            await collect(limited, _chat(), context)
    assert [(line["log_level"], line["target"], line["counted"], line["estimated"]) for line in logs] == [
        ("warning", "p/m", 10**12, PROMPT + 1),
        ("warning", "p/n", 10**12, PROMPT + 1),
    ]


async def test_vectors_take_what_their_upstream_says() -> None:
    vectors = Result(Embeddings((Embedding(0, (1.0,)),)))
    steps: Batch = [Started("a", 1, "m"), vectors, Usage(input_tokens=3)]
    assert await _asked(Embed(model="m", inputs=("x" * 40,)), steps) == (10, 3)


async def test_where_no_level_limits_tokens_events_are_not_looked_at() -> None:
    def decode() -> Batch:
        raise AssertionError("decoded")

    whole = Whole("openai", b"{}", decode)
    limiter = Watched()
    context = _context(NO_TOKENS)
    async with Limited(Scripted([whole]), limiter).open(_chat(stream=False), context) as batches:
        assert [batch async for batch in batches] == [whole]
    assert (limiter.reserved, limiter.settled) == ([0], [0])
    assert context.rates == Rates(requests=Rate(10, 9, 61.0))


async def test_a_whole_answer_is_passed_on_as_it_is() -> None:
    whole = Whole("openai", b"{}", lambda: [event for batch in COUNTED for event in batch])
    limiter = Watched()
    async with Limited(Scripted([whole]), limiter).open(_chat(stream=False), _context(TOKENS)) as batches:
        (batch,) = [batch async for batch in batches]
    assert batch is whole
    assert limiter.settled == [12]


async def test_only_levels_with_limits_are_asked() -> None:
    limiter = Watched()
    await collect(Limited(Scripted(SAID), limiter), _chat(), _context(Level(name="t"), TOKENS, Level(name="u")))
    assert limiter.levels == [[TOKENS]]


@pytest.mark.parametrize("principal", [ANONYMOUS, Principal(levels=(Level(), Level(name="tenants/acme")))])
async def test_without_limits_the_inner_one_answers_itself(principal: Principal) -> None:
    class Inner:
        def open(self, request: Request, context: Context, /) -> Answering:
            return answering

    answering = Scripted(SAID).open(_chat(), a_context())
    limiter = Watched()
    assert Limited(Inner(), limiter).open(_chat(), a_context(principal=principal)) is answering


async def test_who_is_held_back_asks_nobody_and_is_told_what_is_left() -> None:
    inner, limiter = Scripted(SAID), Watched()
    level = Level(name="tenants/acme", limits=Limits(requests=1))
    await collect(Limited(inner, limiter), _chat(), _context(level))
    context = _context(level)
    with pytest.raises(LimitReached, match="1 request a minute of tenants/acme"):
        await collect(Limited(inner, limiter), _chat(), context)
    assert context.rates == Rates(requests=Rate(1, 0, 61.0))
    assert len(inner.calls) == 1


@pytest.mark.parametrize("script", [Script(at_open=BROKEN), Script(at_enter=BROKEN)])
async def test_who_could_not_begin_has_taken_a_request_but_no_tokens_nor_a_place(script: Script) -> None:
    limiter, context = Watched(), _context(TOKENS)
    for _ in range(4):  # one more than there are places
        with pytest.raises(Failure, match="broken"):
            await collect(Limited(Scripted(script), limiter), _chat(), context)
    assert limiter.settled == [0] * 4
    assert context.rates == Rates(requests=Rate(10, 6, 61.0), tokens=Rate(10_000, 10_000 - PROMPT - ANSWER, 61.0))


@pytest.mark.parametrize(("reached", "settled"), [(True, PROMPT), (False, 0)])
async def test_who_leaves_before_a_word_pays_for_the_prompt_if_it_was_sent(reached: bool, settled: int) -> None:
    gate, limiter, context = Gate(), Watched(), _context(TOKENS)
    task = asyncio.create_task(collect(Limited(Scripted([gate, *SAID]), limiter), _chat(), context))
    await asyncio.wait_for(gate.reached.wait(), 5)
    if reached:
        context.trail.append(Attempt(provider="p", model="m", started=0.0))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert limiter.settled == [settled]


async def test_who_leaves_while_the_upstream_is_entered_gives_the_place_back() -> None:
    gate, limiter = Gate(), Watched()
    inner = Scripted(Script(at_enter=gate))
    task = asyncio.create_task(collect(Limited(inner, limiter), _chat(), _context(TOKENS)))
    await asyncio.wait_for(gate.reached.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    assert limiter.settled == [0]


async def test_a_client_that_goes_in_mid_stream_pays_for_what_came() -> None:
    limiter = Watched()
    async with Limited(Scripted(SAID), limiter).open(_chat(), _context(TOKENS)) as batches:
        await anext(batches)
        await anext(batches)
    assert limiter.settled == [PROMPT + 2]


async def test_it_is_a_provider_like_any() -> None:
    class Generous(Limited):
        """All that ask have limits that are never reached."""

        def open(self, request: Request, context: Context, /) -> Answering:
            levels = (Level(name="tenants/acme", limits=Limits(requests=100, tokens=10**6, concurrent=5)),)
            context.principal = Principal(levels=levels)
            return super().open(request, context)

    await assert_conforms(Generous(Scripted(SAID), Watched()), _chat())
