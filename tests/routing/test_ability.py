"""Who can do what is asked: what a request needs, who is left and why the others aren't, what is said if nobody is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmg.boot.settings.models import CAPABILITIES
from llmg.core.errors import Failure, Kind
from llmg.core.request import (
    Audio,
    Chat,
    Embed,
    File,
    GrammarOutput,
    Image,
    JsonOutput,
    Message,
    Opaque,
    Part,
    Request,
    Sampling,
    SchemaOutput,
    Text,
    TextOutput,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from llmg.ports import Profile
from llmg.routing.ability import NAMES, Demand, Rejected, needs
from llmg.routing.models import Group, Target
from llmg.routing.policies.base import First
from llmg.routing.policies.view import View
from llmg.routing.router import Router
from llmg.testing.clocks import FakeClock
from llmg.testing.conformance import a_context, collect
from llmg.testing.models import Models
from llmg.testing.scripted import Script, Scripted, saying
from llmg.wire.openai.requests import decode_chat

PICTURE = Image("https://a.example/b.png")
SOUND = Audio("AAAA", "wav")
TOOL = Tool(name="f")


def _chat(*parts: Part, **fields: Any) -> Chat:
    return Chat(model="m", messages=(Message(role="user", parts=parts or (Text("hi"),)),), **fields)


def _long(tokens: int) -> Chat:
    return _chat(Text("x" * 4 * tokens))


def _group(*profiles: Profile, name: str = "m", inner: Any = None, **fields: Any) -> Group:
    targets = tuple(Target(provider="p", model=f"{name}{n}", inner=inner, profile=p) for n, p in enumerate(profiles))
    return Group(name=name, targets=targets, policy=First(), **fields)


def _demand(request: Request) -> Demand:
    context = a_context()
    return Demand(request, View(request, context), context)


def _lacks(*capabilities: str, **fields: Any) -> Profile:
    return Profile(lacks=frozenset(capabilities), **fields)


ANY = Profile()
TWO = (TOOL, Opaque("openai", {"type": "web_search"}))
NEEDS: list[tuple[Request, dict[str, str]]] = [
    (_chat(), {}),
    (_chat(tools=TWO), {"tools": "tools"}),
    (_chat(tools=TWO[1:]), {"tools": "tools"}),
    (_chat(tools=(TOOL,), tool_choice=ToolChoice(mode="auto")), {"tools": "tools"}),
    (_chat(tools=(TOOL,), tool_choice=Opaque("openai", {})), {"tools": "tools"}),
    (_chat(tools=(TOOL,), tool_choice=ToolChoice(mode="none")), {}),
    (_chat(tools=()), {}),
    (_chat(ToolCall("a", "f", "{}")), {}),
    (_chat(Text("?"), PICTURE), {"vision": "messages"}),
    (_chat(ToolResult("a", (Text("!"), PICTURE))), {"vision": "messages"}),
    (_chat(File(id="f")), {}),
    (_chat(output=SchemaOutput(schema={})), {"json_schema": "response_format"}),
    (_chat(output=JsonOutput()), {}),
    (_chat(output=TextOutput()), {}),
    (_chat(output=GrammarOutput("root ::= x")), {}),
    (_chat(reasoning_effort="low"), {"reasoning": "reasoning_effort"}),
    (_chat(reasoning_effort="none"), {}),
    (_chat(SOUND), {"audio": "messages"}),
    (_chat(extra={"modalities": ["text", "audio"]}), {"audio": "modalities"}),
    (_chat(extra={"modalities": ["text"]}), {}),
    (_chat(extra={"modalities": "audio"}), {}),
    (_chat(extra={"modalities": None}), {}),
    (_chat(SOUND, PICTURE, tools=(TOOL,)), {"tools": "tools", "vision": "messages", "audio": "messages"}),
    (Embed(model="m", inputs=("hi",)), {}),
]


@pytest.mark.parametrize(("request_", "found"), NEEDS)
def test_what_a_request_needs(request_: Request, found: dict[str, str]) -> None:
    assert needs(request_) == found


def test_audio_that_is_asked_for_in_openais_dialect() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "modalities": ["audio"], "audio": {}}
    assert needs(decode_chat(json.dumps(body).encode()).chat) == {"audio": "modalities"}


def test_each_capability_has_a_name_and_a_request_that_needs_it() -> None:
    assert set(NAMES) == set(CAPABILITIES) == {capability for _, found in NEEDS for capability in found}


EMBED = Embed(model="m", inputs=("x" * 40, "x" * 400))  # 10 and 100 tokens
ABLE: list[tuple[Request, list[Profile], list[int]]] = [
    (_chat(), [ANY, Profile(chat=False), ANY], [0, 2]),
    (EMBED, [ANY, Profile(embed=False), ANY], [0, 2]),
    (_chat(PICTURE), [_lacks("vision"), ANY, _lacks("tools"), Profile(has=frozenset({"vision"}))], [1, 2, 3]),
    (_chat(PICTURE, tools=(TOOL,)), [_lacks("vision"), _lacks("tools"), _lacks("audio")], [2]),
    (_chat(), [_lacks(*CAPABILITIES)], [0]),
    (_long(100), [Profile(context_window=100), Profile(context_window=101), ANY], [1, 2]),
    (_long(100), [_lacks("vision", context_window=1000), _lacks(context_window=99)], [0]),
    (EMBED, [Profile(context_window=100), Profile(context_window=101), _lacks("vision")], [1, 2]),
    (_chat(PICTURE), [Profile(chat=False), _lacks("vision"), ANY], [2]),
]


@pytest.mark.parametrize(("request_", "profiles", "left"), ABLE)
def test_who_is_able(request_: Request, profiles: list[Profile], left: list[int]) -> None:
    demand, group = _demand(request_), _group(*profiles)
    assert demand.able(group) == left
    rejected = demand.rejected(group)
    assert sorted([*left, *(one.index for one in rejected)]) == list(range(len(profiles)))


def test_those_left_are_the_askers_own() -> None:
    demand, group = _demand(_chat()), _group(ANY, ANY)
    demand.able(group).remove(0)
    assert demand.able(group) == [0, 1]


def test_why_each_is_rejected() -> None:
    demand = _demand(_chat(PICTURE, Text("x" * 400), tools=(TOOL,), reasoning_effort="high"))
    group = _group(
        Profile(chat=False, lacks=frozenset({"vision"})),
        _lacks("vision"),
        _lacks("reasoning", "tools", "vision"),
        ANY,
        _lacks("json_schema", context_window=1000),
        _lacks("tools", context_window=1000),
    )
    assert demand.rejected(group) == [
        Rejected(0, "can't do chat"),
        Rejected(1, "can't do vision"),
        Rejected(2, "can't do tools, vision and reasoning"),
        Rejected(4, "its context window of 1000 tokens is too small for about 1103"),
        Rejected(5, "can't do tools; its context window of 1000 tokens is too small for about 1103"),
    ]


SMALL = Profile(context_window=100)
INVALID, TOO_LONG = Kind.INVALID_REQUEST, Kind.CONTEXT_LENGTH_EXCEEDED
FAILURES: list[tuple[Request, list[Profile], Kind, str | None, str]] = [
    (_chat(), [Profile(chat=False)], Kind.NOT_IMPLEMENTED, None, "chat for the model 'm' is not implemented"),
    (EMBED, [Profile(embed=False)], Kind.NOT_IMPLEMENTED, None, "embeddings for the model 'm' is not implemented"),
    (_chat(PICTURE), [_lacks("vision")] * 2, INVALID, "messages", "no target of the model 'm' can do vision"),
    (_chat(tools=(TOOL,)), [_lacks("tools")], INVALID, "tools", "no target of the model 'm' can do tools"),
    (
        _chat(output=SchemaOutput(schema={})),
        [_lacks("json_schema"), Profile(chat=False)],
        INVALID,
        "response_format",
        "no target of the model 'm' can do JSON schemas",
    ),
    (
        _chat(PICTURE, reasoning_effort="low"),
        [_lacks("vision"), _lacks("reasoning")],
        INVALID,
        "messages",
        "no target of the model 'm' can do vision and reasoning",
    ),
    (
        _chat(PICTURE, reasoning_effort="low"),
        [_lacks("vision", "reasoning"), _lacks("reasoning")],
        INVALID,
        "reasoning_effort",
        "no target of the model 'm' can do reasoning",
    ),
    (
        _long(5000),
        [SMALL, Profile(context_window=4096), _lacks("tools", context_window=50)],
        TOO_LONG,
        "messages",
        "the prompt of about 5000 tokens is too long for the model 'm', whose context window is 4096",
    ),
    (
        EMBED,
        [SMALL],
        TOO_LONG,
        "input",
        "the prompt of about 100 tokens is too long for the model 'm', whose context window is 100",
    ),
    (  # a shorter one would be answered
        _chat(PICTURE),
        [_lacks("vision"), SMALL],
        TOO_LONG,
        "messages",
        "the prompt of about 1000 tokens is too long for the model 'm', whose context window is 100",
    ),
    (  # a shorter one would not
        _chat(PICTURE),
        [_lacks("vision", context_window=100)],
        INVALID,
        "messages",
        "no target of the model 'm' can do vision",
    ),
]


@pytest.mark.parametrize(("request_", "profiles", "kind", "param", "message"), FAILURES)
async def test_what_is_said_when_nobody_is_able(
    request_: Request, profiles: list[Profile], kind: Kind, param: str | None, message: str
) -> None:
    group = _group(*profiles)
    assert _demand(request_).able(group) == []
    with pytest.raises(Failure) as raised:
        await collect(Router(Models({"m": group}, {}), FakeClock()), request_)
    assert (raised.value.kind, raised.value.param, raised.value.message) == (kind, param, message)


def test_nothing_is_computed_of_a_request_whose_targets_can_do_everything() -> None:
    class Untouched(View):
        @property
        def input_tokens(self) -> int:
            raise AssertionError("not asked for")

    chat = _chat(PICTURE, tools=(TOOL,))
    demand = Demand(chat, Untouched(chat, a_context()), a_context())
    assert demand.able(_group(ANY, Profile(has=frozenset({"vision"})))) == [0, 1]
    assert demand.able(_group(ANY, _lacks("audio"))) == [0, 1]


# Through the router

GOOD = saying("hello")


async def _asked(request: Request, *groups: Group) -> list[str]:
    """The routes that were tried."""
    context = a_context()
    await collect(Router(Models({group.name: group for group in groups}, {}), FakeClock()), request, context)
    return [attempt.route for attempt in context.trail]


async def test_only_those_who_can_are_asked() -> None:
    group = _group(_lacks("vision"), ANY, inner=Scripted(GOOD))
    assert await _asked(_chat(PICTURE), group) == ["p/m1"]
    assert await _asked(_chat(), group) == ["p/m0"]


async def test_another_who_can_takes_over() -> None:
    first_fails = Scripted(Script(at_enter=Failure(Kind.UPSTREAM_ERROR, "words")), GOOD)
    group = _group(ANY, _lacks("vision"), ANY, inner=first_fails)
    assert await _asked(_chat(PICTURE), group) == ["p/m0", "p/m2"]


ON_LENGTH = frozenset({Kind.CONTEXT_LENGTH_EXCEEDED})


async def test_a_prompt_that_is_too_long_goes_to_a_fallback_if_asked() -> None:
    inner = Scripted(GOOD)
    small = _group(SMALL, inner=inner, fallbacks=("none", "large"), fallback_on=ON_LENGTH)
    none = _group(SMALL, name="none", inner=inner)
    large = _group(SMALL, Profile(context_window=200), name="large", inner=inner)
    assert await _asked(_long(150), small, none, large) == ["p/large1"]
    assert await _asked(_long(99), small, none, large) == ["p/m0"]


@pytest.mark.parametrize(
    ("request_", "group"),
    [
        (_long(100), _group(SMALL, fallbacks=("other",))),
        (_long(100), _group(SMALL, fallback_on=ON_LENGTH)),
        (_long(1000), _group(SMALL, fallbacks=("other",), fallback_on=ON_LENGTH)),
        (_chat(PICTURE), _group(_lacks("vision"), fallbacks=("other",), fallback_on=ON_LENGTH)),
        (EMBED, _group(Profile(embed=False), fallbacks=("other",), fallback_on=ON_LENGTH)),
    ],
)
async def test_else_it_does_not(request_: Request, group: Group) -> None:
    inner = Scripted(GOOD)
    other = _group(Profile(context_window=1000), name="other", inner=inner)
    expected = _demand(request_).failure(group)
    with pytest.raises(Failure) as raised:
        await _asked(request_, group, other)
    assert (raised.value.kind, raised.value.message) == (expected.kind, expected.message)
    assert not inner.calls


def test_what_the_answer_may_hold_is_no_part_of_the_prompt() -> None:
    chat = _chat(sampling=Sampling(max_tokens=1000))
    assert _demand(chat).able(_group(SMALL)) == [0]
