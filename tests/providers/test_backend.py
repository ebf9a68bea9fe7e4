"""The provider for local models, against a backend of the test's over a real channel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from msgspec import UNSET

from llmg.backendapi import backend_pb2 as pb
from llmg.backends import servicer
from llmg.backends.servicer import Servicer, StatusError
from llmg.core.assemble import Answer, assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import Embeddings, Event, Notice, check
from llmg.core.request import Chat, Embed, Message, Sampling, Text, Tool
from llmg.launcher.local import free_port
from llmg.ports import Running
from llmg.providers.backend import Backend, Channels, Elsewhere, Place, Reach
from llmg.testing.conformance import a_context, assert_conforms, collect
from support.http import PATIENCE

TOKEN = "a-token"
Code = grpc.StatusCode
Servicing = grpc.aio.ServicerContext[Any, Any]


class Fake(Servicer):
    """A backend that gives these replies, then raises or waits if it is told to."""

    def __init__(
        self,
        *replies: pb.Reply,
        ends: Exception | None = None,
        waits: bool = False,
        trailing: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__()
        self.replies = replies
        self.asked: list[pb.PredictOptions] = []
        self.metadata: dict[str, Any] = {}
        self.came = asyncio.Event()
        self.left = asyncio.Event()
        self.embed: Callable[[pb.PredictOptions], pb.EmbeddingResult] = lambda _: pb.EmbeddingResult(embeddings=[1, 0])
        self._ends = ends
        self._waits = waits
        self._trailing = tuple(trailing)

    async def load(self, options: pb.ModelOptions) -> None:
        """Nothing to load."""

    async def unload(self) -> None:
        """Nothing to unload."""

    async def Predict(self, request: pb.PredictOptions, context: Servicing) -> pb.Reply:
        async with self._answering(request, context):
            whole = pb.Reply()
            for reply in self.replies:
                whole.chat_deltas.extend(reply.chat_deltas)
                whole.message += reply.message
                whole.logprobs += reply.logprobs
                whole.tokens, whole.prompt_tokens = reply.tokens, reply.prompt_tokens
            await self._end()
            return whole

    async def PredictStream(self, request: pb.PredictOptions, context: Servicing) -> AsyncIterator[pb.Reply]:
        async with self._answering(request, context):
            for reply in self.replies:
                yield reply
            await self._end()

    async def Embedding(self, request: pb.PredictOptions, context: Servicing) -> pb.EmbeddingResult:
        async with self._answering(request, context):
            await self._end()
            return self.embed(request)

    @asynccontextmanager
    async def _answering(self, request: pb.PredictOptions, context: Servicing) -> AsyncIterator[None]:
        self.asked.append(request)
        self.metadata = dict(context.invocation_metadata() or ())
        context.set_trailing_metadata(self._trailing)
        self.came.set()
        try:
            yield
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _end(self) -> None:
        if self._ends is not None:
            raise self._ends
        if self._waits:
            await asyncio.Event().wait()


@asynccontextmanager
async def backend(fake: Fake, *, token: str = TOKEN) -> AsyncIterator[Backend]:
    """A provider before it."""
    channels = Channels()
    async with await servicer.start(fake, token=TOKEN) as running:
        try:
            yield Backend(Elsewhere(running.address, token), channels)
        finally:
            await channels.close()


def say(text: str = "Hello", **fields: Any) -> Chat:
    """A request of one message."""
    return Chat(model="m", messages=(Message(role="user", parts=(Text(text),)),), **fields)


async def answer_of(fake: Fake, chat: Chat) -> Answer:
    """What the provider makes of the fake's replies."""
    async with backend(fake) as made:
        events = await collect(made, chat)
        check(events)
        return assemble(events)


async def failure_of(made: Backend, request: Chat | Embed) -> Failure:
    """What it fails with."""
    with pytest.raises(Failure) as caught:
        await collect(made, request)
    return caught.value


both = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


def parts(answer: Answer) -> list[tuple[str, Any]]:
    """(kind, data) of the first choice's."""
    return [(part.kind, part.data) for part in answer.choices[0].parts]


async def test_it_keeps_to_the_port() -> None:
    async with backend(Fake(pb.Reply(message=b"Hi "), pb.Reply(message=b"you", tokens=2, prompt_tokens=5))) as made:
        await assert_conforms(made, say())


async def test_what_is_sent() -> None:
    fake = Fake(pb.Reply(message=b"x"))
    chat = say(
        stop=("END",),
        seed=-1,
        sampling=Sampling(temperature=0.0, max_tokens=7, logit_bias={"2": -100.0}),
        tools=(Tool(name="f", parameters={"type": "object"}),),
    )
    async with backend(fake) as made:
        await collect(made, chat)
    (asked,) = fake.asked
    assert [(m.role, m.content) for m in asked.Messages] == [("user", "Hello")]
    assert asked.UseTokenizerTemplate
    assert (asked.Temperature, asked.Tokens, asked.Seed) == (0.0, 7, 0x7FFF_FFFF)
    assert list(asked.StopPrompts) == ["END"]
    assert json.loads(asked.LogitBias) == {"2": -100}
    assert json.loads(asked.Tools)[0]["function"]["name"] == "f"
    assert asked.CorrelationId == "req_a1"
    assert fake.metadata["authorization"] == f"Bearer {TOKEN}"


async def test_without_a_seed_each_call_has_another() -> None:
    fake = Fake(pb.Reply(message=b"x"))
    async with backend(fake) as made:
        for _ in range(3):
            await collect(made, say())
    assert len({asked.Seed for asked in fake.asked}) == 3


# -- replies --------------------------------------------------------------------------------------------------------


@both
async def test_a_character_cut_in_two(stream: bool) -> None:
    whole = "Zoë 日本 🙂"
    pieces = [pb.Reply(message=bytes([byte])) for byte in whole.encode()]
    answer = await answer_of(Fake(*pieces), say(stream=stream))
    assert parts(answer) == [("text", whole)]


@both
async def test_the_half_of_a_character_at_the_end(stream: bool) -> None:
    answer = await answer_of(Fake(pb.Reply(message="abc日".encode()[:-1])), say(stream=stream))
    assert parts(answer) == [("text", "abc\ufffd")]


@both
async def test_deltas_are_taken_and_not_the_text_beside_them(stream: bool) -> None:
    replies = [pb.Reply(message=w.encode(), chat_deltas=[pb.ChatDelta(content=w)]) for w in ("one ", "two")]
    assert parts(await answer_of(Fake(*replies), say(stream=stream))) == [("text", "one two")]


async def test_a_last_delta_that_says_all_once_more() -> None:
    said = [pb.Reply(message=w.encode(), chat_deltas=[pb.ChatDelta(content=w)]) for w in ("one ", "two")]
    again = pb.Reply(chat_deltas=[pb.ChatDelta(content="one two")], tokens=2)
    assert parts(await answer_of(Fake(*said, again), say(stream=True))) == [("text", "one two")]


@both
async def test_thoughts_then_text_then_calls(stream: bool) -> None:
    calls = [
        pb.ToolCallDelta(index=0, id="c1", name="f", arguments='{"a"'),
        pb.ToolCallDelta(index=1, name="g"),
        pb.ToolCallDelta(index=0, arguments=":1}"),
        pb.ToolCallDelta(index=1, arguments="{}"),
    ]
    replies = [
        pb.Reply(chat_deltas=[pb.ChatDelta(reasoning_content="hm")]),
        pb.Reply(chat_deltas=[pb.ChatDelta(reasoning_content="m"), pb.ChatDelta(content="So")]),
        pb.Reply(chat_deltas=[pb.ChatDelta(tool_calls=calls[:2])]),
        pb.Reply(chat_deltas=[pb.ChatDelta(tool_calls=calls[2:])], tokens=9, prompt_tokens=4),
    ]
    answer = await answer_of(Fake(*replies), say(stream=stream))
    assert parts(answer) == [("reasoning", "hmm"), ("text", "So"), ("tool", '{"a":1}'), ("tool", "{}")]
    tools = answer.choices[0].parts[2:]
    assert [(part.id, part.name) for part in tools] == [("c1", "f"), (tools[1].id, "g")]
    assert tools[1].id
    assert answer.choices[0].reason == "tool_calls"
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (4, 9)


@both
async def test_log_probabilities(stream: bool) -> None:
    top = {"token": "b", "logprob": -2.0, "bytes": [98]}
    raw = json.dumps({"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [top]}]}).encode()
    fake = Fake(pb.Reply(message=b"a", logprobs=raw))
    answer = await answer_of(fake, say(stream=stream, logprobs=True, top_logprobs=1))
    logprobs = answer.choices[0].parts[0].logprobs
    assert logprobs is not UNSET
    assert (logprobs[0].token, logprobs[0].logprob, logprobs[0].bytes) == ("a", -0.5, (97,))
    assert logprobs[0].top[0].token == "b"
    assert fake.asked[0].TopLogprobs == 1


@both
@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"content": [{"logprob": 1}]}', b'{"content": [7]}', b"\xff"])
async def test_log_probabilities_that_are_none(raw: bytes, stream: bool) -> None:
    async with backend(Fake(pb.Reply(message=b"a", logprobs=raw))) as made:
        assert (await failure_of(made, say(stream=stream))).kind is Kind.UPSTREAM_PROTOCOL


@both
@pytest.mark.parametrize(
    ("trailing", "tokens", "limit", "reason"),
    [
        ([], 3, 5, "stop"),
        ([], 5, 5, "length"),
        ([], 5, UNSET, "stop"),
        ([("llmg-finish-reason", "stop")], 5, 5, "stop"),
        ([("llmg-finish-reason", "length")], 3, 5, "length"),
        ([("llmg-finish-reason", "tool_calls")], 3, 5, "tool_calls"),
        ([("llmg-finish-reason", "nonsense")], 3, 5, "stop"),
    ],
)
async def test_why_it_ended(
    trailing: list[tuple[str, str]], tokens: int, limit: Any, reason: str, stream: bool
) -> None:
    fake = Fake(pb.Reply(message=b"x", tokens=tokens, prompt_tokens=2), trailing=trailing)
    answer = await answer_of(fake, say(stream=stream, sampling=Sampling(max_tokens=limit)))
    assert answer.choices[0].reason == reason


@both
async def test_tokens_of_the_prompt_that_were_known(stream: bool) -> None:
    fake = Fake(pb.Reply(message=b"x", tokens=1, prompt_tokens=9), trailing=[("llmg-cached-tokens", "8")])
    answer = await answer_of(fake, say(stream=stream))
    assert answer.usage
    assert answer.usage.cached_tokens == 8


@both
async def test_an_answer_of_nothing(stream: bool) -> None:
    for fake in (Fake(), Fake(pb.Reply()), Fake(pb.Reply(prompt_tokens=3))):
        answer = await answer_of(fake, say(stream=stream))
        assert parts(answer) == [("text", "")]
        assert answer.choices[0].reason == "stop"


async def test_what_the_contract_has_no_place_for_is_reported() -> None:
    async with backend(Fake(pb.Reply(message=b"x"))) as made:
        events = await collect(made, say(extra={"x_new": 1}, parallel_tool_calls=False))
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.kind == "loss"
    assert set(notice.data["fields"]) == {"x_new", "parallel_tool_calls"}


# -- failures -------------------------------------------------------------------------------------------------------

STATUSES: list[tuple[grpc.StatusCode, dict[str, str], Kind, bool]] = [
    (Code.INVALID_ARGUMENT, {}, Kind.INVALID_REQUEST, True),
    (Code.INVALID_ARGUMENT, {"llmg-error-kind": "context_length_exceeded"}, Kind.CONTEXT_LENGTH_EXCEEDED, True),
    (Code.OUT_OF_RANGE, {}, Kind.INVALID_REQUEST, True),
    (Code.UNIMPLEMENTED, {}, Kind.NOT_IMPLEMENTED, True),
    (Code.RESOURCE_EXHAUSTED, {}, Kind.OVERLOADED, False),
    (Code.UNAVAILABLE, {}, Kind.UPSTREAM_UNAVAILABLE, False),
    (Code.DEADLINE_EXCEEDED, {}, Kind.UPSTREAM_TIMEOUT, False),
    (Code.UNAUTHENTICATED, {}, Kind.UPSTREAM_AUTH, False),
    (Code.PERMISSION_DENIED, {}, Kind.UPSTREAM_AUTH, False),
    (Code.NOT_FOUND, {}, Kind.UPSTREAM_ERROR, False),
    (Code.FAILED_PRECONDITION, {}, Kind.UPSTREAM_ERROR, False),
    (Code.INTERNAL, {}, Kind.UPSTREAM_ERROR, False),
    (Code.UNKNOWN, {}, Kind.UPSTREAM_ERROR, False),
    (Code.ABORTED, {}, Kind.UPSTREAM_ERROR, False),
]


@both
@pytest.mark.parametrize("begun", [False, True], ids=["at once", "midway"])
@pytest.mark.parametrize(("code", "trailing", "kind", "shown"), STATUSES, ids=[f"{r[0].name}-{r[2]}" for r in STATUSES])
async def test_what_a_status_means(
    code: grpc.StatusCode, trailing: dict[str, str], kind: Kind, shown: bool, begun: bool, stream: bool
) -> None:
    """Only what is about the request is told in the backend's words."""
    replies = [pb.Reply(message=b"x")] if begun else []
    async with backend(Fake(*replies, ends=StatusError(code, "the inner reason", trailing))) as made:
        failure = await failure_of(made, say(stream=stream))
    assert failure.kind is kind
    assert ("the inner reason" in failure.message) is shown
    assert "the inner reason" in (failure.detail or "")
    assert failure.param == ("messages" if kind is Kind.CONTEXT_LENGTH_EXCEEDED else None)


async def test_a_wrong_token_is_ours_to_mend() -> None:
    async with backend(Fake(), token="not-that-one") as made:
        failure = await failure_of(made, say())
    assert failure.kind is Kind.UPSTREAM_AUTH
    assert "not-that-one" not in failure.message + (failure.detail or "")


@both
async def test_nobody_at_the_address(stream: bool) -> None:
    channels = Channels()
    made = Backend(Elsewhere(f"127.0.0.1:{free_port()}"), channels)
    assert (await failure_of(made, say(stream=stream))).kind is Kind.UPSTREAM_UNAVAILABLE
    await channels.close()


@both
async def test_a_deadline_is_kept(stream: bool) -> None:
    fake = Fake(waits=True)
    async with backend(fake) as made:
        with pytest.raises(Failure) as caught:
            await collect(made, say(stream=stream), a_context(deadline=time.monotonic() + 0.2))
        assert caught.value.kind is Kind.DEADLINE_EXCEEDED


# -- leaving --------------------------------------------------------------------------------------------------------


async def heard_of(event: asyncio.Event) -> None:
    """Waits for what must happen soon."""
    async with asyncio.timeout(1):
        await event.wait()


@both
async def test_who_leaves_cancels_the_call(stream: bool) -> None:
    fake = Fake(pb.Reply(message=b"x"), waits=True)
    async with backend(fake) as made:
        task = asyncio.create_task(collect(made, say(stream=stream)))
        await heard_of(fake.came)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await heard_of(fake.left)


async def test_who_stops_listening_cancels_the_call() -> None:
    fake = Fake(pb.Reply(message=b"x"), waits=True)
    async with backend(fake) as made:
        async with made.open(say(stream=True), a_context()) as batches:
            await anext(aiter(batches))
        await heard_of(fake.left)


async def test_who_stops_listening_to_vectors_cancels_all_calls() -> None:
    fake = Fake(waits=True)
    async with backend(fake) as made:
        task = asyncio.create_task(collect(made, Embed(model="m", inputs=("a", "b", "c"))))
        async with asyncio.timeout(PATIENCE):
            while len(fake.asked) < 3:
                await fake.came.wait()
                await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await heard_of(fake.left)


# -- a backend that dies --------------------------------------------------------------------------------------------


class Mortal:
    """A place whose backends are known to be dead, but for the last."""

    def __init__(self, *addresses: str) -> None:
        self._left = [
            Running(address=address, token=TOKEN, identity="", generation=number)
            for number, address in enumerate(addresses, 1)
        ]
        self.found: list[int] = []

    async def find(self) -> Running:
        """See Place."""
        running = self._left[0]
        self.found.append(running.generation)
        return running

    async def post_mortem(self, running: Running) -> str | None:
        """See Place."""
        if len(self._left) == 1:
            return None
        self._left.pop(0)
        return f"backend {running.generation} was killed by signal 9"


@asynccontextmanager
async def at(place: Place) -> AsyncIterator[Backend]:
    """A provider there."""
    channels = Channels()
    try:
        yield Backend(place, channels)
    finally:
        await channels.close()


@both
async def test_a_call_that_never_arrived_goes_to_the_next_process(stream: bool) -> None:
    async with await servicer.start(Fake(pb.Reply(message=b"x")), token=TOKEN) as running:
        place = Mortal(f"127.0.0.1:{free_port()}", running.address)
        async with at(place) as made:
            assert parts(assemble(await collect(made, say(stream=stream)))) == [("text", "x")]
        assert place.found == [1, 2]


@both
async def test_a_call_that_may_have_arrived_does_not(stream: bool) -> None:
    fake = Fake(waits=True)
    running = await servicer.start(fake, token=TOKEN)
    place = Mortal(running.address, "127.0.0.1:1")
    async with at(place) as made:
        asking = asyncio.create_task(failure_of(made, say(stream=stream)))
        await heard_of(fake.came)
        await running.stop()
        failure = await asking
    assert failure.kind is Kind.BACKEND_CRASHED
    assert failure.message == "backend 1 was killed by signal 9"
    assert place.found == [1]


class Waiting(Fake):
    """A backend that ends when it is told to."""

    def __init__(self, *replies: pb.Reply) -> None:
        super().__init__(*replies)
        self.go = asyncio.Event()

    async def _end(self) -> None:
        await self.go.wait()


@both
async def test_a_call_goes_on_where_nothing_more_is_asked(stream: bool) -> None:
    fake = Waiting(pb.Reply(message=b"x"))
    channels = Channels()
    async with await servicer.start(fake, token=TOKEN) as running:
        made = Backend(Elsewhere(running.address, TOKEN), channels)
        asking = asyncio.create_task(collect(made, say(stream=stream)))
        await heard_of(fake.came)
        stub = channels.stub(running.address)
        channels.retire(running.address)
        fake.go.set()
        assert parts(assemble(await asking)) == [("text", "x")]
        assert channels.stub(running.address) is not stub
        await channels.close()


async def test_one_calls_crash_does_not_cancel_the_others() -> None:
    """They hear of it, or not, by themselves."""
    go = asyncio.Event()

    class Both(Fake):
        async def Predict(self, request: pb.PredictOptions, context: Servicing) -> pb.Reply:
            if request.Messages[0].content == "crash":
                raise StatusError(Code.INTERNAL, "that was too much")
            self.came.set()
            await go.wait()
            return pb.Reply(message=b"still here")

    fake = Both()
    async with await servicer.start(fake, token=TOKEN) as running, at(Mortal(running.address, running.address)) as made:
        other = asyncio.create_task(collect(made, say()))
        await heard_of(fake.came)
        assert (await failure_of(made, say("crash"))).kind is Kind.BACKEND_CRASHED
        await asyncio.sleep(0)
        go.set()
        assert parts(assemble(await other)) == [("text", "still here")]


# -- vectors --------------------------------------------------------------------------------------------------------


async def vectors(fake: Fake, embed: Embed) -> tuple[list[Any], list[Event]]:
    """The vectors, and all events."""
    async with backend(fake) as made:
        events = await collect(made, embed)
    answer = assemble(events)
    assert isinstance(answer.result, Embeddings)
    return [vector.values for vector in answer.result.vectors], events


async def test_vectors_come_in_the_order_of_the_texts() -> None:
    fake = Fake()
    fake.embed = lambda asked: pb.EmbeddingResult(embeddings=[float(asked.Embeddings)], prompt_tokens=2)
    inputs = tuple(str(number) for number in range(30))
    values, events = await vectors(fake, Embed(model="m", inputs=inputs))
    assert values == [(float(number),) for number in range(30)]
    usage = assemble(events).usage
    assert usage
    assert usage.input_tokens == 60


async def test_vectors_of_tokens() -> None:
    fake = Fake()
    await vectors(fake, Embed(model="m", inputs=((1, 2, 3),)))
    assert list(fake.asked[0].EmbeddingTokens) == [1, 2, 3]


async def test_a_backend_that_counts_no_prompt() -> None:
    fake = Fake()
    fake.embed = lambda _: pb.EmbeddingResult(embeddings=[1], tokens=4)
    _, events = await vectors(fake, Embed(model="m", inputs=("a",)))
    usage = assemble(events).usage
    assert usage
    assert usage.input_tokens == 4


async def test_other_dimensions_than_it_has() -> None:
    async with backend(Fake()) as made:
        failure = await failure_of(made, Embed(model="m", inputs=("a",), dimensions=3))
    assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, "dimensions")


async def test_the_first_failure_of_several_is_told() -> None:
    fake = Fake()

    def embed(asked: pb.PredictOptions) -> pb.EmbeddingResult:
        if asked.Embeddings == "bad":
            raise StatusError(Code.INVALID_ARGUMENT, "that text is bad")
        return pb.EmbeddingResult(embeddings=[1])

    fake.embed = embed
    async with backend(fake) as made:
        failure = await failure_of(made, Embed(model="m", inputs=("a", "bad", "c")))
    assert (failure.kind, failure.message) == (Kind.INVALID_REQUEST, "that text is bad")


# -- whether it is there --------------------------------------------------------------------------------------------


class Examined(Fake):
    """A backend that says this when it is asked for its health."""

    def __init__(self, says: bytes | Code) -> None:
        super().__init__()
        self._says = says

    async def Health(self, request: pb.HealthMessage, context: Servicing) -> pb.Reply:
        if isinstance(self._says, Code):
            raise StatusError(self._says, "the inner reason")
        return pb.Reply(message=self._says)


async def reached(address: str, token: str = TOKEN) -> Kind | None:
    """What its health check finds."""
    channels = Channels()
    try:
        await Reach(channels, address, token)()
    except Failure as failure:
        return failure.kind
    finally:
        await channels.close()
    return None


@pytest.mark.parametrize(
    ("says", "found"),
    [
        (b"OK", None),
        (b"loading", Kind.UPSTREAM_UNAVAILABLE),
        (Code.UNIMPLEMENTED, None),
        (Code.RESOURCE_EXHAUSTED, None),
        (Code.PERMISSION_DENIED, None),
        (Code.INTERNAL, Kind.UPSTREAM_ERROR),
        (Code.UNAVAILABLE, Kind.UPSTREAM_UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("token", [TOKEN, "not-that-one"])
async def test_who_is_there(says: bytes | Code, found: Kind | None, token: str) -> None:
    async with await servicer.start(Examined(says), token=TOKEN) as running:
        assert await reached(running.address, token) is (found if token == TOKEN else None)


async def test_nobody_is_there() -> None:
    assert await reached(f"127.0.0.1:{free_port()}") is Kind.UPSTREAM_UNAVAILABLE
