"""The scenarios of chats: what is asked, what the provider does, and what a client must learn at whatever door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import ParseDict
from msgspec import UNSET, Struct

from llmg.core.errors import Failure, Kind
from llmg.core.events import Closed, Delta, Event, Finished, Opened, PartKind, Reason, Started, TokenLogprob
from llmg.core.usage import Usage
from llmg.gatewayapi.v1.chat_pb2 import Chat
from llmg.ports import Profile
from llmg.routing.ability import Demand
from llmg.routing.models import Group, Target
from llmg.routing.policies.base import First
from llmg.routing.policies.view import View
from llmg.testing.conformance import a_context
from llmg.testing.scripted import Script, Scripted, Step, saying
from llmg.wire.gateway import decode_chat
from scenarios.asking import Asked, Told, asked


class Scenario(Struct, frozen=True, kw_only=True):
    """`script` is what the provider does; `told` what each client must learn."""

    script: Script
    told: Told
    asked: Asked = asked()


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


def takes(*, openai: Mapping[str, Any], gateway: Mapping[str, Any]) -> Scenario:
    """A request that a provider gets to see, with these fields."""
    return Scenario(
        script=Script(steps=saying("ok")),
        told=Told(choices=(choice(part("text", "ok")),)),
        asked=asked(openai=openai, gateway=gateway),
    )


def refused(field: str, *, openai: Mapping[str, Any], gateway: Mapping[str, Any] | None = None) -> Scenario:
    """A request that no provider gets to see, because of this field. `gateway`: where it is another than `openai`."""
    return Scenario(
        script=Script(),
        told=Told(failure=Kind.INVALID_REQUEST, field=field),
        asked=asked(openai=openai, gateway=openai if gateway is None else gateway),
    )


def unable(capability: str, field: str, *, openai: Mapping[str, Any], gateway: Mapping[str, Any]) -> Scenario:
    """A request that no target of the model can answer, as the router refuses it, because of this field."""
    asks = asked(openai=openai, gateway=gateway)
    request, context = decode_chat(ParseDict(asks.typed, Chat()), stream=False), a_context()
    target = Target(provider="p", model="x", inner=Scripted(), profile=Profile(lacks=frozenset({capability})))
    group = Group(name="m", targets=(target,), policy=First())
    failure = Demand(request, View(request, context), context).failure(group)
    return Scenario(script=Script(at_open=failure), told=Told(failure=Kind.INVALID_REQUEST, field=field), asked=asks)


RIVALS: dict[str, Any] = {"logprobs": True, "top_logprobs": 1}
CALLS: list[list[Event]] = [
    [Opened(0, 0, "tool", "call_a", "weather"), Opened(0, 1, "tool", "call_b", "time")],
    [Delta(0, 0, '{"city":')],
    [Delta(0, 1, "{}"), Delta(0, 0, ' "Bern"}')],
    [Closed(0, 0), Closed(0, 1), Finished(0, "tool_calls")],
]
PICTURE: dict[str, Any] = {
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "?"},
                    {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "low"}},
                ],
            }
        ]
    },
    "gateway": {
        "messages": [
            {
                "role": "ROLE_USER",
                "parts": [
                    {"text": {"text": "?"}},
                    {"image": {"url": "https://a.example/b.png", "detail": "low"}},
                ],
            }
        ]
    },
}
TOOL: dict[str, Any] = {
    "openai": {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
    },
    "gateway": {
        "tools": [{"name": "weather", "parameters": {"type": "object"}}],
        "toolChoice": {"mode": "MODE_NAMED", "name": "weather"},
        "parallelToolCalls": False,
    },
}
SCENARIOS: dict[str, Scenario] = {
    "plain text": Scenario(
        script=Script(steps=saying("Hello", " there")), told=Told(choices=(choice(part("text", "Hello there")),))
    ),
    "beyond ASCII": Scenario(
        script=Script(steps=saying("Grüße ", "👋", "🏽 e", "\u0301\u2028\0")),
        told=Told(choices=(choice(part("text", "Grüße 👋🏽 e\u0301\u2028\0")),)),
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
        asked=asked(openai=RIVALS, gateway={"logprobs": True, "topLogprobs": 1}),
    ),
    "two choices": Scenario(
        script=says(
            [Opened(0, 0, "text"), Opened(1, 0, "text"), Delta(1, 0, "B"), Delta(0, 0, "A")],
            [Closed(0, 0), Finished(0, "stop")],
            [Closed(1, 0), Finished(1, "length")],
        ),
        told=Told(choices=(choice(part("text", "A")), choice(part("text", "B"), index=1, reason="length"))),
        asked=asked(openai={"n": 2}, gateway={"n": 2}),
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
        told=Told(failure=Kind.MODEL_NOT_FOUND, field="model"),
    ),
    "not entered": Scenario(
        script=Script(at_enter=Failure(Kind.UPSTREAM_RATE_LIMITED, "later", retry_after=1.0)),
        told=Told(failure=Kind.UPSTREAM_RATE_LIMITED, retry_after=1.0),
    ),
    "fails before its first word": fails([START], kind=Kind.OVERLOADED),
    "fails in mid-stream": fails(*saying("Hello")[:2], kind=Kind.BACKEND_CRASHED),
    "our own mistake": Scenario(
        script=Script(steps=[*saying("Hello")[:2], ValueError("a secret")]), told=Told(failure=Kind.INTERNAL)
    ),
    "the upstream's limit in mid-stream": fails(*saying("Hello")[:2], kind=Kind.UPSTREAM_RATE_LIMITED),
    "the upstream cut off": fails(*saying("Hello")[:2], kind=Kind.UPSTREAM_TRUNCATED),
    "too long": Scenario(
        script=Script(at_enter=Failure(Kind.CONTEXT_LENGTH_EXCEEDED, "too long", param="messages")),
        told=Told(failure=Kind.CONTEXT_LENGTH_EXCEEDED, field="messages"),
    ),
    "a field that the upstream refuses": Scenario(
        script=Script(at_enter=Failure(Kind.INVALID_REQUEST, "not with this model", param="temperature")),
        told=Told(failure=Kind.INVALID_REQUEST, field="temperature"),
        asked=asked(openai={"temperature": 0.5}, gateway={"sampling": {"temperature": 0.5}}),
    ),
    # what is asked
    "a JSON schema": takes(
        openai={
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "place", "schema": {"type": "object"}, "strict": True},
            }
        },
        gateway={"outputFormat": {"schema": {"name": "place", "schema": {"type": "object"}, "strict": True}}},
    ),
    "a tool to choose": takes(**TOOL),
    "a tool's answer": takes(
        openai={
            "messages": [
                {"role": "user", "content": "?"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "a", "content": "42"},
            ]
        },
        gateway={
            "messages": [
                {"role": "ROLE_USER", "parts": [{"text": {"text": "?"}}]},
                {"role": "ROLE_ASSISTANT", "parts": [{"toolCall": {"id": "a", "name": "f", "arguments": "{}"}}]},
                {"role": "ROLE_TOOL", "parts": [{"toolResult": {"callId": "a", "parts": [{"text": {"text": "42"}}]}}]},
            ]
        },
    ),
    "a picture": takes(**PICTURE),
    "how to draw tokens": takes(
        openai={
            "temperature": 0.5,
            "top_p": 0.9,
            "max_completion_tokens": 12,
            "frequency_penalty": -1,
            "presence_penalty": 1.5,
            "logit_bias": {"50256": -100},
            "stop": ["\n", "END"],
            "seed": 7,
        },
        gateway={
            "sampling": {
                "temperature": 0.5,
                "topP": 0.9,
                "maxTokens": 12,
                "frequencyPenalty": -1.0,
                "presencePenalty": 1.5,
                "logitBias": {"50256": -100.0},
            },
            "stop": ["\n", "END"],
            "seed": 7,
        },
    ),
    "how to think, for whom": takes(
        openai={"reasoning_effort": "low", "user": "u", "metadata": {"a": "b"}},
        gateway={"reasoningEffort": "low", "user": "u", "metadata": {"a": "b"}},
    ),
    # what is refused
    "no model": refused("model", openai={"model": ""}),
    "no messages": refused("messages", openai={"messages": []}),
    "no choices": refused("n", openai={"n": 0}),
    "too many choices": refused("n", openai={"n": 129}),
    "rivals of nothing": refused("top_logprobs", openai={"top_logprobs": 2}, gateway={"topLogprobs": 2}),
    "too many rivals": refused(
        "top_logprobs",
        openai={"logprobs": True, "top_logprobs": 21},
        gateway={"logprobs": True, "topLogprobs": 21},
    ),
    "too hot": refused("temperature", openai={"temperature": 2.5}, gateway={"sampling": {"temperature": 2.5}}),
    "a share above 1": refused("top_p", openai={"top_p": 1.5}, gateway={"sampling": {"topP": 1.5}}),
    "fewer than no candidates": refused("top_k", openai={"top_k": -5}, gateway={"sampling": {"topK": -5}}),
    "a penalty out of range": refused(
        "frequency_penalty", openai={"frequency_penalty": 3}, gateway={"sampling": {"frequencyPenalty": 3}}
    ),
    "a penalty below nothing": refused(
        "repetition_penalty", openai={"repetition_penalty": -1}, gateway={"sampling": {"repetitionPenalty": -1}}
    ),
    "a bias out of range": refused(
        "logit_bias", openai={"logit_bias": {"1": 500}}, gateway={"sampling": {"logitBias": {"1": 500}}}
    ),
    "a tool to choose that is none": refused(
        "name",
        openai={"tool_choice": {"type": "function", "function": {"name": ""}}},
        gateway={"toolChoice": {"mode": "MODE_NAMED"}},
    ),
    "no room for an answer": refused("max_tokens", openai={"max_tokens": 0}, gateway={"sampling": {"maxTokens": 0}}),
    "a tool without a name": refused(
        "name",
        openai={"tools": [{"type": "function", "function": {"name": ""}}]},
        gateway={"tools": [{"name": ""}]},
    ),
    "a picture without an address": refused(
        "url",
        openai={"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
        gateway={"messages": [{"role": "ROLE_USER", "parts": [{"image": {"url": ""}}]}]},
    ),
    # what no target can do
    "a picture for a model that can't see": unable("vision", "messages", **PICTURE),
    "tools for a model that can't call them": unable("tools", "tools", **TOOL),
}
