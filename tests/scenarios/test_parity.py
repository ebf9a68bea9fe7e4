"""The same request through every door: the same answer, the same failure.

`SCENARIOS` says what the provider does, `DOORS` how it is asked: either grows by a row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import msgspec
import pytest
from msgspec import UNSET, Struct, UnsetType

from llmg.core.assemble import Answer, assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import Closed, Delta, Event, Finished, Opened, PartKind, Reason, Started, TokenLogprob, check
from llmg.core.usage import Usage
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.testing.conformance import a_context
from llmg.testing.scripted import Script, Scripted, Step, saying
from llmg.wire import sse
from llmg.wire.openai.answers import decode_answer
from llmg.wire.openai.chunks import ChunkDecoder
from support import gatewayapi
from support.doors import grpc_door, refusal, rest_door
from support.http import PATIENCE, Response


class Asked(Struct, frozen=True, kw_only=True):
    """What is asked, in words that every door has. `fields` are those that all doors name alike."""

    model: str = "m"
    text: str = "Hello"
    fields: dict[str, Any] = {}


class Told(Struct, frozen=True, kw_only=True):
    """What a client learns, in the words of no door: ids and times are none of it."""

    choices: tuple[Any, ...] = ()
    usage: Usage | UnsetType = UNSET
    failure: Kind | None = None


def told(answer: Answer) -> Told:
    """Of an answer."""
    choices = [
        (
            choice.index,
            tuple((part.kind, part.data, part.id, part.name, part.logprobs) for part in choice.parts),
            choice.reason,
            choice.native_reason,
        )
        for choice in answer.choices
    ]
    return Told(choices=tuple(choices), usage=answer.usage)


# -- doors -------------------------------------------------------------------------------------------------------------

Ask = Callable[[Asked], Awaitable[Told]]
Door = Callable[[Scripted], AbstractAsyncContextManager[Ask]]


def _rest(stream: bool) -> Door:
    @asynccontextmanager
    async def door(provider: Scripted) -> AsyncIterator[Ask]:
        async with rest_door(provider) as gateway:

            async def ask(asked: Asked) -> Told:
                own: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
                response = await gateway.chat(asked.model, asked.text, **asked.fields, **own)
                return _of_response(response, stream)

            yield ask

    return door


def _of_response(response: Response, stream: bool) -> Told:
    if response.status != 200:
        return Told(failure=Kind(response.error["code"]))
    if not stream:
        return told(assemble(decode_answer(response.body, a_context())))
    decoder, out = ChunkDecoder(a_context()), list[Event]()
    for event in sse.Decoder().feed(response.body):
        if event.data == b"[DONE]":
            decoder.end(out)
            return told(assemble(out))
        if error := msgspec.json.decode(event.data).get("error"):
            return Told(failure=Kind(error["code"]))
        decoder.feed(event.data, out)
    raise AssertionError("the stream has no end")


def _grpc(ask_chat: Callable[[Any, pb.Chat], Awaitable[list[Event]]]) -> Door:
    @asynccontextmanager
    async def door(provider: Scripted) -> AsyncIterator[Ask]:
        async with grpc_door(provider) as served:

            async def ask(asked: Asked) -> Told:
                said = pb.Part(text=pb.TextPart(text=asked.text))
                message = pb.Message(role=pb.ROLE_USER, parts=[said])
                chat = pb.Chat(model=asked.model, messages=[message], **asked.fields)
                try:
                    events = await ask_chat(served.chat, chat)
                except grpc.aio.AioRpcError as error:
                    return Told(failure=refusal(error).kind)
                check(events)
                return told(assemble(events))

            yield ask

    return door


async def _grpc_stream(stub: Any, chat: pb.Chat) -> list[Event]:
    call = stub.CreateChatCompletionStream(pb.CreateChatCompletionStreamRequest(chat=chat), timeout=PATIENCE)
    return gatewayapi.events([message async for message in call])


async def _grpc_whole(stub: Any, chat: pb.Chat) -> list[Event]:
    answer = await stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=chat), timeout=PATIENCE)
    return gatewayapi.whole(answer.completion)


DOORS: dict[str, Door] = {
    "REST SSE": _rest(stream=True),
    "REST unary": _rest(stream=False),
    "gRPC stream": _grpc(_grpc_stream),
    "gRPC unary": _grpc(_grpc_whole),
}


# -- scenarios ---------------------------------------------------------------------------------------------------------


class Scenario(Struct, frozen=True, kw_only=True):
    """`script` is what the provider does; `told` what each client must learn."""

    script: Script
    told: Told
    asked: Asked = Asked()


START: Event = Started("scripted", 1_760_000_000, "scripted-model")
COUNTS = Usage(input_tokens=11, output_tokens=7, cached_tokens=3, reasoning_tokens=2)
LIKELY = (
    TokenLogprob("Hel", -0.25, (72, 101, 108), (TokenLogprob("Hi", -1.5, (72, 105)),)),
    TokenLogprob("lo", -0.5, None),
)


def part(kind: PartKind, data: str, id: Any = UNSET, name: Any = UNSET, logprobs: Any = UNSET) -> tuple[Any, ...]:
    """A part, as it is told."""
    return (kind, data, id, name, logprobs)


def choice(*parts: tuple[Any, ...], index: int = 0, reason: Reason = "stop", native: Any = UNSET) -> tuple[Any, ...]:
    """A choice, as it is told."""
    return (index, parts, reason, native)


def says(*batches: Sequence[Event]) -> Script:
    """A provider that answers so."""
    return Script(steps=[[START], *batches])


def fails(*steps: Step, kind: Kind) -> Scenario:
    """A provider that fails so, after these."""
    return Scenario(script=Script(steps=[*steps, Failure(kind, "that went wrong")]), told=Told(failure=kind))


def refused(**asked: Any) -> Scenario:
    """A request that no provider gets to see."""
    return Scenario(script=Script(), told=Told(failure=Kind.INVALID_REQUEST), asked=Asked(**asked))


CALLS: list[list[Event]] = [
    [Opened(0, 0, "tool", "call_a", "weather"), Opened(0, 1, "tool", "call_b", "time")],
    [Delta(0, 0, '{"city":')],
    [Delta(0, 1, "{}"), Delta(0, 0, ' "Bern"}')],
    [Closed(0, 0), Closed(0, 1), Finished(0, "tool_calls")],
]
SCENARIOS: dict[str, Scenario] = {
    "plain text": Scenario(
        script=Script(steps=saying("Hello", " there")), told=Told(choices=(choice(part("text", "Hello there")),))
    ),
    "beyond ASCII": Scenario(
        script=Script(steps=saying("Grüße ", "👋🏽", "\u2028\0")),
        told=Told(choices=(choice(part("text", "Grüße 👋🏽\u2028\0")),)),
    ),
    "a tool call": Scenario(
        script=says(
            [Opened(0, 0, "tool", "call_a", "weather"), Delta(0, 0, "{}"), Closed(0, 0), Finished(0, "tool_calls")]
        ),
        told=Told(choices=(choice(part("tool", "{}", "call_a", "weather"), reason="tool_calls"),)),
    ),
    "parallel tool calls": Scenario(
        script=says(*CALLS),
        told=Told(
            choices=(
                choice(
                    part("tool", '{"city": "Bern"}', "call_a", "weather"),
                    part("tool", "{}", "call_b", "time"),
                    reason="tool_calls",
                ),
            )
        ),
    ),
    "reasoning": Scenario(
        script=says(
            [Opened(0, 0, "reasoning"), Delta(0, 0, "Hm."), Closed(0, 0)],
            [Opened(0, 1, "text"), Delta(0, 1, "Yes."), Closed(0, 1), Finished(0, "stop")],
        ),
        told=Told(choices=(choice(part("reasoning", "Hm."), part("text", "Yes.")),)),
    ),
    "a refusal": Scenario(
        script=Script(steps=saying("No.", kind="refusal")), told=Told(choices=(choice(part("refusal", "No.")),))
    ),
    "log probabilities": Scenario(
        script=says([Opened(0, 0, "text"), Delta(0, 0, "Hello", LIKELY)], [Closed(0, 0), Finished(0, "stop")]),
        told=Told(choices=(choice(part("text", "Hello", logprobs=LIKELY)),)),
        asked=Asked(fields={"logprobs": True, "top_logprobs": 1}),
    ),
    "two choices": Scenario(
        script=says(
            [Opened(0, 0, "text"), Opened(1, 0, "text"), Delta(1, 0, "B"), Delta(0, 0, "A")],
            [Closed(0, 0), Finished(0, "stop")],
            [Closed(1, 0), Finished(1, "length")],
        ),
        told=Told(choices=(choice(part("text", "A")), choice(part("text", "B"), index=1, reason="length"))),
        asked=Asked(fields={"n": 2}),
    ),
    "usage": Scenario(
        script=Script(steps=saying("Hello", usage=COUNTS)),
        told=Told(choices=(choice(part("text", "Hello")),), usage=COUNTS),
    ),
    "cut by a filter": Scenario(
        script=Script(steps=saying("He", reason="content_filter")),
        told=Told(choices=(choice(part("text", "He"), reason="content_filter"),)),
    ),
    "a reason of the upstream's own": Scenario(
        script=says([Opened(0, 0, "text"), Delta(0, 0, "A"), Closed(0, 0)], [Finished(0, "other", "bored")]),
        told=Told(choices=(choice(part("text", "A"), reason="other", native="bored"),)),
    ),
    "an empty answer": Scenario(
        script=says([Opened(0, 0, "text"), Closed(0, 0), Finished(0, "stop")]),
        told=Told(choices=(choice(part("text", "")),)),
    ),
    "not opened": Scenario(
        script=Script(at_open=Failure(Kind.MODEL_NOT_FOUND, "no such model", param="model")),
        told=Told(failure=Kind.MODEL_NOT_FOUND),
    ),
    "not entered": Scenario(
        script=Script(at_enter=Failure(Kind.UPSTREAM_RATE_LIMITED, "later", retry_after=1.0)),
        told=Told(failure=Kind.UPSTREAM_RATE_LIMITED),
    ),
    "fails before its first word": fails([START], kind=Kind.OVERLOADED),
    "fails in mid-stream": fails(*saying("Hello")[:2], kind=Kind.BACKEND_CRASHED),
    "our own mistake": Scenario(
        script=Script(steps=[*saying("Hello")[:2], ValueError("a secret")]), told=Told(failure=Kind.INTERNAL)
    ),
    "no model": refused(model=""),
    "no choices": refused(fields={"n": 0}),
    "rivals of nothing": refused(fields={"top_logprobs": 2}),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_a_scenario_through_a_door(scenario: Scenario, door: Door) -> None:
    provider = Scripted(scenario.script)
    async with door(provider) as ask:
        assert await ask(scenario.asked) == scenario.told
    assert all(call.exits == call.entered.is_set() for call in provider.calls)
