"""The short way through lists of plain objects: the same answers and errors as graphql-core's own."""

from __future__ import annotations

from typing import Any

import pytest
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
from strawberry.types.graphql import OperationType

from llmg.core import events
from llmg.core.context import no_header
from llmg.core.events import Batch
from llmg.core.usage import Usage
from llmg.doors.graphql import execution
from llmg.doors.graphql.asking import Asking, Gateway
from llmg.doors.graphql.schema import Schema, make_schema
from llmg.testing.scripted import Scripted
from support.doors import admission, some_models

LOGPROBS = (events.TokenLogprob("b", -0.5, (98,), (events.TokenLogprob("c", -1.5),)),)
BATCHES: tuple[Batch, ...] = (
    [events.Started("1", 1_700_000_000_000, "m"), events.Opened(0, 0, "text")],
    [events.Delta(0, 0, "a"), events.Delta(0, 0, "b", LOGPROBS)],
    [events.Annotated(0, 0, {"type": "citation", "url": "u"}), events.Closed(0, 0)],
    [events.Opened(0, 1, "tool", "call_1", "look"), events.Delta(0, 1, "{}"), events.Closed(0, 1)],
    [events.Opened(0, 2, "audio"), events.Delta(0, 2, b"\x00\xff"), events.Closed(0, 2)],
    [events.Finished(0, "other", "tired"), Usage(input_tokens=3, output_tokens=4)],
)
INPUT = '{ model: "m", messages: [{ role: USER, parts: [{ text: { text: "Hi" } }] }] }'
FRAGMENTS = "fragment F on ChatEvent { ... on Delta { text } ...G } fragment G on Closed { part }"
SELECTIONS = {
    "the type alone": "",
    "leaves": "... on Delta { choice part text data }",
    "enums": "... on Opened { kind id name } ... on Finished { reason nativeReason }",
    "large integers": "... on Started { created id }",
    "JSON": "... on Annotated { annotation } ... on Notice { data }",
    "aliases": "what: __typename ... on Delta { words: text again: text }",
    "a fragment": "...F",
    "a field twice": "... on Delta { text } ... on Delta { text part }",
    "skipped and included": "... on Delta { text @skip(if: $yes) part @include(if: $yes) choice @include(if: $no) }",
    "nested objects": "... on Delta { text logprobs { token logprob bytes top { token bytes } } }",
    "usage": "... on Usage { inputTokens outputTokens estimated }",
    "nothing of it": "... on Notice { kind }",
}


async def answers(schema: Schema, query: str, batches: tuple[Batch, ...]) -> list[tuple[Any, Any]]:
    """(data, errors) of each payload."""
    pipeline = Scripted(batches)
    asking = Asking(Gateway(pipeline, some_models(), admission()), "req_1", no_header)
    results: Any = await schema.stream(query, context_value=asking, allowed_operation_types=frozenset(OperationType))
    return [(r.data, [error.formatted for error in r.errors or ()]) async for r in results]


async def both(batches: tuple[Batch, ...], selection: str) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Our answers and graphql-core's."""
    variables = "($yes: Boolean! = true, $no: Boolean! = false)" if "$yes" in selection else ""
    fragments = FRAGMENTS if "...F" in selection else ""
    query = (
        f"subscription {variables} {{ chatCompletion(input: {INPUT}) {{ events {{ __typename {selection} }} }} }}"
        + fragments
    )
    theirs = make_schema()
    theirs.execution_context_class = StrawberryGraphQLCoreExecutionContext
    return await answers(make_schema(), query, batches), await answers(theirs, query, batches)


@pytest.mark.parametrize("selection", [pytest.param(text, id=name) for name, text in SELECTIONS.items()])
async def test_the_same_answers(selection: str) -> None:
    ours, theirs = await both(BATCHES, selection)
    assert ours == theirs
    assert [list(map(list, data["chatCompletion"]["events"])) for data, _ in ours] == [
        list(map(list, data["chatCompletion"]["events"])) for data, _ in theirs
    ]  # in the order in which it was asked
    assert len(ours) == len(BATCHES)
    assert not any(errors for _, errors in ours)


@pytest.mark.parametrize("choice", [2**40, None, "one"])
async def test_the_same_errors(choice: Any) -> None:
    wrong: tuple[Batch, ...] = (
        [events.Started("1", 1, "m"), events.Opened(0, 0, "text"), events.Delta(choice, 0, "a")],
    )
    ours, theirs = await both(wrong, "... on Delta { choice text }")
    assert ours == theirs
    [(_, [error])] = ours
    assert error["path"] == ["chatCompletion", "events", 2, "choice"]


async def test_plain_objects_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    general = execution.Execution.complete_abstract_value

    def counting(self: Any, union: Any, nodes: Any, info: Any, path: Any, result: Any, *more: Any) -> Any:
        taken.append(type(result).__name__)
        return general(self, union, nodes, info, path, result, *more)

    monkeypatch.setattr(execution.Execution, "complete_abstract_value", counting)
    await both(BATCHES[:2], "... on Delta { choice part text }")
    assert taken == []
    await both(BATCHES[:2], "... on Delta { logprobs { token } }")
    assert taken == ["Delta", "Delta"]
