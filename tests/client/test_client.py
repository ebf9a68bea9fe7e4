"""Every method of the client, through the real gRPC door, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from msgspec import UNSET

from llmg.client import Client, Completion, NotFoundError, types
from llmg.client import client as own
from llmg.client.transport import Method
from llmg.core.context import Attempt, Context
from llmg.core.events import (
    Annotated,
    Closed,
    Delta,
    Embedding,
    Embeddings,
    Event,
    Finished,
    Notice,
    Opened,
    Result,
    Started,
    TokenLogprob,
)
from llmg.core.request import Chat, Embed, Message, Request, Text
from llmg.core.usage import Usage
from llmg.gatewayapi.v1 import chat_pb2, embeddings_pb2, models_pb2, routing_pb2
from llmg.ports import Answering, Provider
from llmg.providers.echo import Echo
from llmg.services.models import Model
from llmg.testing.scripted import Script, Scripted, saying
from support.doors import MODELS, grpc_door, some_models
from support.http import PATIENCE


@asynccontextmanager
async def client_of(pipeline: Provider, **kwargs: Any) -> AsyncIterator[Client]:
    """A client of a door before this pipeline."""
    async with grpc_door(pipeline) as door, Client(door.address, timeout=PATIENCE, **kwargs) as client:
        yield client


async def whole(client: Client, stream: bool, **fields: Any) -> Completion:
    """An answer, read in one of the two ways."""
    if not stream:
        return await client.chat("m", "Hello", **fields)
    async with client.stream("m", "Hello", **fields) as reading:
        return await reading.get_final_completion()


BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
START: Event = Started("scripted", 1_760_000_000, "scripted-model", "print", "fast")


def says(*batches: list[Event]) -> Scripted:
    return Scripted([[START], *batches])


def test_every_method_is_there() -> None:
    files = (chat_pb2, embeddings_pb2, models_pb2, routing_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    wanted = {
        f"/{service.full_name}/{method.name}": (
            method.input_type.name,
            method.output_type.name,
            method.server_streaming,
        )
        for service in services
        for method in service.methods
    }
    methods = [value for value in vars(own).values() if isinstance(value, Method)]
    assert wanted == {
        method.path: (method.request.__name__, method.response.__name__, method.cardinality.server_streaming)
        for method in methods
    }


# -- answers -----------------------------------------------------------------------------------------------------------


@BOTH
async def test_text(stream: bool) -> None:
    provider = Scripted(saying("Grüße ", "👋🏽", "\u2028\0", usage=Usage(input_tokens=2, output_tokens=3)))
    async with client_of(provider) as client:
        answer = await whole(client, stream)
    assert (answer.text, answer.finish_reason) == ("Grüße 👋🏽\u2028\0", types.FinishReason.STOP)
    assert (answer.id, answer.created, answer.model) == ("scripted", 1_760_000_000, "m")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.estimated) == (2, 3, False)
    assert (answer.reasoning, answer.refusal, answer.tool_calls) == ("", "", [])
    (call,) = provider.calls
    assert isinstance(call.request, Chat)
    assert call.request.messages == (Message(role="user", parts=(Text("Hello"),)),)
    assert call.request.stream is stream


@BOTH
async def test_everything_an_answer_may_hold(stream: bool) -> None:
    likely = (TokenLogprob("Hel", -0.25, (72, 101), (TokenLogprob("Hi", -1.5),)), TokenLogprob("lo", -0.5))
    provider = says(
        [Opened(0, 0, "reasoning"), Delta(0, 0, "Hm"), Delta(0, 0, "."), Closed(0, 0)],
        [Opened(0, 1, "text"), Delta(0, 1, "Hello", likely), Closed(0, 1)],
        [Opened(0, 2, "tool", "call_a", "weather"), Opened(0, 3, "tool", "call_b", "time")],
        [Delta(0, 2, '{"city":'), Delta(0, 3, "{}"), Delta(0, 2, ' "Bern"}'), Closed(0, 2), Closed(0, 3)],
        [Opened(1, 0, "refusal"), Delta(1, 0, "No."), Closed(1, 0), Finished(1, "other", "bored")],
        [Opened(0, 4, "audio"), Delta(0, 4, b"\0\xff"), Delta(0, 4, b"\1"), Closed(0, 4), Finished(0, "tool_calls")],
    )
    async with client_of(provider) as client:
        answer = await whole(client, stream, n=2, logprobs=True, top_logprobs=1)
    first, second = answer.choices
    assert (first.index, first.reasoning, first.text) == (0, "Hm.", "Hello")
    assert first.finish_reason == types.FinishReason.TOOL_CALLS
    assert first.tool_calls == answer.tool_calls
    assert [(c.id, c.name, c.arguments) for c in first.tool_calls] == [
        ("call_a", "weather", '{"city": "Bern"}'),
        ("call_b", "time", "{}"),
    ]
    assert first.parts[4].data == b"\0\xff\1"
    one, two = first.parts[1].logprobs
    assert (one.token, one.logprob, one.bytes, two.bytes) == ("Hel", -0.25, b"He", None)
    assert (one.top[0].token, one.top[0].logprob) == ("Hi", -1.5)
    assert (second.index, second.refusal, second.native_reason) == (1, "No.", "bored")
    assert (answer.raw.system_fingerprint, answer.raw.service_tier) == ("print", "fast")
    assert answer.usage is None


async def test_an_answer_goes_on_as_a_message() -> None:
    provider = Scripted(
        [
            [START, Opened(0, 0, "reasoning"), Delta(0, 0, "Hm."), Closed(0, 0)],
            [Opened(0, 1, "text"), Delta(0, 1, "Let me see."), Closed(0, 1)],
            [Opened(0, 2, "tool", "a", "time"), Delta(0, 2, "{}"), Closed(0, 2), Finished(0, "tool_calls")],
        ],
        saying("Noon."),
    )
    messages: list[Any] = [{"role": "user", "content": "What time is it?"}]
    async with client_of(provider) as client:
        answer = await client.chat("m", messages)
        messages += [answer.message, {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "12:00"}]
        assert (await client.chat("m", messages)).text == "Noon."
    asked: Any = provider.calls[1].request
    assert [message.role for message in asked.messages] == ["user", "assistant", "tool"]
    assert [type(part).__name__ for part in asked.messages[1].parts] == ["Reasoning", "Text", "ToolCall"]
    assert asked.messages[2].parts[0].call_id == asked.messages[1].parts[2].id == "a"


async def test_events_come_as_they_were_sent() -> None:
    batches: list[list[Event]] = [
        [START, Opened(0, 0, "text")],
        [Delta(0, 0, "Hello")],
        [Annotated(0, 0, {"url": "u", "at": [1, 2.5, None, True]})],
        [Closed(0, 0), Finished(0, "stop"), Notice("cache", {"hit": True})],
        [Usage(input_tokens=1)],
    ]
    async with client_of(Scripted(batches)) as client, client.stream("m", "Hello") as stream:
        seen = [event async for event in stream]
        assert await anext(stream, None) is None  # it stays at its end
    assert [type(event).__name__ for event in seen] == [type(e).__name__ for batch in batches for e in batch]
    annotated, notice = seen[3], seen[6]
    assert isinstance(annotated, types.Annotated)
    assert annotated.annotation is not None
    assert annotated.annotation.to_dict() == {"url": "u", "at": [1, 2.5, None, True]}
    assert isinstance(notice, types.Notice)
    assert notice.data is not None
    assert (notice.kind, notice.data.to_dict()) == ("cache", {"hit": True})


async def test_text_alone() -> None:
    provider = says(
        [Opened(0, 0, "reasoning"), Delta(0, 0, "Hm."), Closed(0, 0), Opened(1, 0, "text"), Delta(1, 0, "other")],
        [Opened(0, 1, "text"), Delta(0, 1, "Hel"), Delta(0, 1, "lo"), Closed(0, 1), Closed(1, 0)],
        [Opened(0, 2, "tool", "a", "f"), Delta(0, 2, "{}"), Closed(0, 2), Finished(0, "stop"), Finished(1, "stop")],
    )
    async with client_of(provider) as client, client.stream("m", "Hello") as stream:
        assert stream.completion.text == ""
        pieces = []
        async for piece in stream.text:
            pieces.append(piece)
            assert stream.completion.text == "".join(pieces)  # as far as it has come
        assert (pieces, stream.completion.reasoning) == (["Hel", "lo"], "Hm.")
        assert stream.completion.finish_reason == types.FinishReason.STOP
        assert (await stream.get_final_completion()).choices[1].text == "other"


async def test_a_stream_that_was_not_begun() -> None:
    provider = Scripted(saying("Hello"))
    async with client_of(provider) as client:
        with pytest.raises(RuntimeError, match="async with"):
            await client.stream("m", "Hello").get_final_completion()
    assert provider.calls == []


class Routed(Scripted):
    """Says where the answer comes from, as a router does."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        context.trail.extend(Attempt(provider="p", model=model, started=0.0) for model in ("a", "b"))
        return super().open(request, context)


async def test_which_way_it_went() -> None:
    provider = Routed(saying("Hello", usage=Usage(input_tokens=1)))
    given = {"x-request-id": "mine", "traceparent": "00-1-2-01"}
    async with client_of(provider, metadata={"x-team": "t"}) as client:
        answer = await client.chat("m", "Hello", call_metadata=given)
        assert (answer.request_id, answer.route, answer.way.attempts) == ("mine", "p/b", 2)
        async with client.stream("m", "Hello", call_metadata=given) as stream:
            assert (stream.route, stream.usage) == (None, None)
            assert (await stream.get_final_completion()).way == answer.way
            assert (stream.route, stream.request_id) == ("p/b", "mine")
            assert stream.usage is not None
    assert [call.context.traceparent for call in provider.calls] == ["00-1-2-01"] * 2


# -- the other methods -------------------------------------------------------------------------------------------------


async def test_embeddings() -> None:
    vectors = (Embedding(0, (1.0, -0.5)), Embedding(1, (0.25, 0.0)))
    provider = Scripted([[Started("a", 1, "theirs"), Result(Embeddings(vectors)), Usage(input_tokens=4)]])
    async with client_of(provider) as client:
        answer = await client.embed("m", ["one", [7, 8]], dimensions=2, user="u")
        await client.embed("m", "three")
    assert answer.vectors == [[1.0, -0.5], [0.25, 0.0]]
    assert answer.usage is not None
    assert (answer.model, answer.usage.input_tokens, answer.way.request_id) == ("m", 4, "req_id1")
    assert [call.request for call in provider.calls] == [
        Embed(model="m", inputs=("one", (7, 8)), dimensions=2, user="u"),
        Embed(model="m", inputs=("three",)),
    ]


async def test_models() -> None:
    async with client_of(Scripted()) as client:
        listed = await client.models()
        one = await client.model("c/d")
        with pytest.raises(NotFoundError) as raised:
            await client.model("nope")
    assert [model.id for model in listed] == [model.id for model in MODELS]
    assert (one.id, one.created, one.owned_by, one.operations) == ("c/d", 7, "p", ["chat"])
    assert (raised.value.kind, raised.value.param) == ("model_not_found", "id")


async def test_more_models_than_a_page_holds() -> None:
    names = [f"m{i:04}" for i in range(2500)]
    models = some_models([Model(id=name, created=7, owner="p", operations=()) for name in names])
    async with grpc_door(Scripted(), models=models) as door, Client(door.address) as client:
        assert [model.id for model in await client.models(timeout=PATIENCE)] == names


async def test_raw_messages() -> None:
    said = types.Message(role=types.Role.USER, parts=[types.Part(text=types.TextPart(text="Hello"))])
    chat = types.Chat(model="m", messages=[said])
    async with client_of(Routed(saying("Hi"))) as client:
        stub = client.stub(types.ChatServiceStub)
        answer = await stub.create_chat_completion(types.CreateChatCompletionRequest(chat=chat))
        assert answer.completion is not None
        assert answer.completion.choices[0].parts[0].text == "Hi"
        request = types.CreateChatCompletionStreamRequest(chat=chat)
        async with aclosing(stub.create_chat_completion_stream(request)) as stream:  # type: ignore[type-var]
            assert [len(message.events) async for message in stream] == [2, 1, 2]
        page = await client.stub(types.ModelServiceStub).list_models(types.ListModelsRequest(page_size=1))
        assert (len(page.models), page.next_page_token) == (1, "a")
        with pytest.raises(NotFoundError):
            await client.stub(types.ModelServiceStub).get_model(types.GetModelRequest(id="nope"))


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_many_calls_over_one_connection() -> None:
    async with client_of(Echo()) as client:

        async def streamed(text: str) -> str:
            async with client.stream("m", text) as stream:
                return "".join([piece async for piece in stream.text])

        async def asked(text: str) -> str:
            return (await client.chat("m", text)).text

        words = [f"say {i}" for i in range(200)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task((streamed if i % 2 else asked)(word)) for i, word in enumerate(words)]
        assert [task.result() for task in tasks] == words
        channel: Any = client._made
        assert len(channel._open) == 1


def test_one_client_may_be_made_before_there_is_a_loop() -> None:
    client = Client()

    async def use() -> None:
        async with client:
            pass

    asyncio.run(use())


async def test_a_closed_client_says_so() -> None:
    client = Client()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.chat("m", "Hello")
    with pytest.raises(RuntimeError, match="closed"):
        client.stream("m", "Hello")


@pytest.mark.parametrize(
    "target", ["", "localhost", ":8081", "host:0", "host:65536", "http://host:80", "::1:80", "a b:1"]
)
def test_a_target_that_is_none(target: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        Client(target)


@pytest.mark.parametrize("key", ["", "has space", "line\nbreak", "ключ"])
def test_a_key_that_can_not_be_sent(key: str) -> None:
    with pytest.raises(ValueError, match="an API key is of printable ASCII") as raised:
        Client(api_key=key)
    assert not key or key not in str(raised.value)


async def test_keys() -> None:
    provider = Scripted(saying("Hello"))
    async with (
        grpc_door(provider, keys={"mine": "sk-1234567890abcdef"}) as door,
        Client(door.address, api_key="sk-1234567890abcdef", timeout=PATIENCE) as client,
    ):
        assert (await client.chat("m", "Hello")).text == "Hello"
        async with client.stream("m", "Hello") as stream:
            assert (await stream.get_final_completion()).text == "Hello"
        assert await client.models()
    assert [call.context.principal.key_id for call in provider.calls] == ["mine"] * 2


async def test_an_answer_without_anything() -> None:
    provider = Scripted(Script(steps=[[START, Finished(0, "stop", UNSET)]]))
    async with client_of(provider) as client:
        answer = await client.chat("m", "Hello")
    assert (answer.text, answer.message.parts, answer.finish_reason) == ("", [], types.FinishReason.STOP)
