"""What policies see of a request."""

from __future__ import annotations

import pytest

from llmg.core.request import Chat, Embed, File, Image, Message, Request, Sampling, Text, Tool, ToolCall, ToolResult
from llmg.routing.policies.view import View
from llmg.testing.conformance import a_context


def _chat(*texts: str, tools: tuple[Tool, ...] = (), n: int = 1, sampling: Sampling | None = None) -> Chat:
    messages = tuple(Message(role="user", parts=(Text(text),)) for text in texts)
    return Chat(model="m", messages=messages, tools=tools, n=n, sampling=sampling or Sampling())


def _view(request: Request, session: str | None = None) -> View:
    context = a_context()
    context.session = session
    return View(request, context)


def test_who_asks() -> None:
    view = _view(Chat(model="m", messages=(), user="u"), "s")
    assert (view.user, view.session) == ("u", "s")
    assert (_view(_chat()).user, _view(_chat()).session) == (None, None)
    assert _view(Chat(model="m", messages=(), user="")).user is None


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (_chat("x" * 400, "y" * 40), 110),
        (_chat(), 1),
        (Chat(model="m", messages=(Message(role="user", parts=(Image("http://a"), File(id="f"))),)), 2000),
        (Chat(model="m", messages=(Message(role="assistant", parts=(ToolCall("c", "name", "{" * 36),)),)), 10),
        (Chat(model="m", messages=(Message(role="tool", parts=(ToolResult("c", (Text("z" * 80),)),)),)), 20),
        (Embed(model="m", inputs=("x" * 40, (1, 2, 3))), 13),
    ],
)
def test_an_estimate_of_the_input(request_: Request, tokens: int) -> None:
    assert _view(request_).input_tokens == tokens


def test_tools_are_input_too() -> None:
    tool = Tool(name="f", parameters={"type": "object", "description": "x" * 400})
    assert _view(_chat("x", tools=(tool,))).input_tokens > 100


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (_chat("x"), None),
        (_chat("x", sampling=Sampling(max_tokens=100)), 100),
        (_chat("x", sampling=Sampling(max_tokens=100), n=3), 300),
        (Embed(model="m", inputs=("x",)), 0),
    ],
)
def test_what_output_it_allows(request_: Request, tokens: int | None) -> None:
    assert _view(request_).output_tokens == tokens


def test_another_turn_goes_on_where_the_last_one_ended() -> None:
    first = _view(_chat("a" * 1000)).blocks(64)
    second = _view(_chat("a" * 1000, "b" * 1000)).blocks(64)
    assert len(first) >= 15
    assert list(second[: len(first)]) == list(first)
    assert len(second) > len(first)


def test_a_difference_changes_all_blocks_after_it() -> None:
    one, two = _view(_chat("a" * 1000 + "x" + "b" * 1000)), _view(_chat("a" * 1000 + "y" + "b" * 1000))
    alike = [a == b for a, b in zip(one.blocks(64), two.blocks(64), strict=True)]
    assert alike == sorted(alike, reverse=True)
    assert 0 < sum(alike) <= 1064 // 64 + 1


def test_tools_come_before_all_messages() -> None:
    one, two = (_view(_chat("a" * 1000, tools=(Tool(name=name),))).blocks(64) for name in ("f", "g"))
    assert not set(one) & set(two)


def test_the_same_question_is_answered_from_memory_and_another_size_is_another() -> None:
    view = _view(_chat("a" * 1000))
    assert view.blocks(64) is view.blocks(64)
    assert len(view.blocks(128)) < len(view.blocks(64))


def test_a_short_prompt_and_an_embedding_have_no_blocks() -> None:
    assert list(_view(_chat("hi")).blocks(512)) == []
    assert list(_view(Embed(model="m", inputs=("x" * 5000,))).blocks(64)) == []


def test_a_huge_prompt_has_not_more_blocks_than_are_looked_at() -> None:
    assert len(_view(_chat("a" * 200_000)).blocks(16)) == 2048
