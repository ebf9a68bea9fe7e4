"""The grammar of events: the table, and the checker that holds streams against it."""

from __future__ import annotations

import pytest

from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    CONTENT,
    GRAMMAR,
    Annotated,
    Batch,
    Checker,
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
    State,
    check,
    commits,
)
from llmg.core.usage import Usage

STARTED = Started("a", 1, "m")
RESULT = Result(Embeddings((Embedding(0, (1.0,)),)))

# Where a stream may stand: what came before; the states of stream, choice 0 and its part 0 by then.
NEW, LIVE, DONE = State.NEW, State.LIVE, State.DONE
PLACES: dict[str, tuple[list[Event], tuple[State, State, State]]] = {
    "nothing": ([], (NEW, NEW, NEW)),
    "started": ([STARTED], (LIVE, NEW, NEW)),
    "open": ([STARTED, Opened(0, 0, "text")], (LIVE, LIVE, LIVE)),
    "closed": ([STARTED, Opened(0, 0, "text"), Closed(0, 0)], (LIVE, LIVE, DONE)),
    "finished": ([STARTED, Opened(0, 0, "text"), Closed(0, 0), Finished(0, "stop")], (LIVE, DONE, DONE)),
    "empty": ([STARTED, Finished(0, "stop")], (LIVE, DONE, NEW)),
}
EVENTS: dict[str, Event] = {
    "Started": STARTED,
    "Opened": Opened(0, 0, "text"),
    "Delta": Delta(0, 0, "x"),
    "Annotated": Annotated(0, 0, {"url": "x"}),
    "Closed": Closed(0, 0),
    "Finished": Finished(0, "stop"),
    "Result": RESULT,
    "Usage": Usage(input_tokens=1),
    "Notice": Notice("cache"),
}

# By hand, from the design: + may come here, - may not. Columns are the places above, in their order.
EXPECTED = """
               nothing  started  open  closed  finished  empty
    Started       +        -      -      -        -        -
    Opened        -        +      -      -        -        -
    Delta         -        -      +      -        -        -
    Annotated     -        -      +      -        -        -
    Closed        -        -      +      -        -        -
    Finished      -        +      -      +        -        -
    Result        -        +      +      +        +        +
    Usage         +        +      +      +        +        +
    Notice        +        +      +      +        +        +
"""


def _expected() -> list[tuple[str, str, bool]]:
    head, *rows = [line.split() for line in EXPECTED.strip().splitlines()]
    return [(row[0], place, mark == "+") for row in rows for place, mark in zip(head, row[1:], strict=True)]


def _accepts(before: list[Event], event: Event) -> bool:
    checker = Checker()
    for earlier in before:
        checker.feed(earlier)
    try:
        checker.feed(event)
    except Failure as failure:
        return failure.kind is not Kind.UPSTREAM_PROTOCOL
    return True


@pytest.mark.parametrize(("event", "place", "allowed"), _expected())
def test_expected_table(event: str, place: str, allowed: bool) -> None:
    assert _accepts(PLACES[place][0], EVENTS[event]) is allowed


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("event", EVENTS)
def test_checker_obeys_the_grammar_table(event: str, place: str) -> None:
    before, states = PLACES[place]
    allowed, _ = GRAMMAR[type(EVENTS[event])]
    by_table = all(state in states_allowed for state, states_allowed in zip(states, allowed, strict=True))
    if event == "Finished" and place == "open":
        by_table = False  # the one rule on several parts at once, which no row of the table can say
    assert _accepts(before, EVENTS[event]) is by_table


def test_grammar_has_a_row_for_each_event() -> None:
    assert set(GRAMMAR) == {type(event) for event in EVENTS.values()}


def test_states_become_what_the_table_says() -> None:
    assert {event.__name__: becomes for event, (_, becomes) in GRAMMAR.items() if any(becomes)} == {
        "Started": (LIVE, None, None),
        "Opened": (None, LIVE, LIVE),
        "Closed": (None, None, DONE),
        "Finished": (None, DONE, None),
    }


def _answer(*events: Event) -> list[Event]:
    return [STARTED, *events]


WHOLE: dict[str, list[Event]] = {
    "text": _answer(Opened(0, 0, "text"), Delta(0, 0, "a"), Closed(0, 0), Finished(0, "stop")),
    "no part at all": _answer(Finished(0, "length")),
    "parts overlap": _answer(
        Opened(0, 0, "text"),
        Opened(0, 1, "tool", "c", "f"),
        Delta(0, 1, "{"),
        Delta(0, 0, "a"),
        Delta(0, 1, "}"),
        Closed(0, 1),
        Closed(0, 0),
        Finished(0, "tool_calls"),
    ),
    "choices interleave": _answer(
        Opened(1, 0, "text"),
        Opened(0, 0, "text"),
        Delta(1, 0, "b"),
        Closed(1, 0),
        Finished(1, "stop"),
        Closed(0, 0),
        Finished(0, "stop"),
        Usage(output_tokens=1),
    ),
    "usage grows": [Usage(final=False), *_answer(Finished(0, "stop")), Usage(final=False), Usage()],
    "a result": _answer(RESULT, Usage()),
}
BROKEN: dict[str, tuple[list[Event], str]] = {
    "part 1 before part 0": (_answer(Opened(0, 1, "text")), "numbered"),
    "a number left out": (_answer(Opened(0, 0, "text"), Opened(0, 2, "text")), "numbered"),
    "a part still open": (_answer(Opened(0, 0, "text"), Finished(0, "stop")), "still open"),
    "another part open": (
        _answer(Opened(0, 0, "text"), Opened(0, 1, "tool", "c", "f"), Closed(0, 0), Finished(0, "tool_calls")),
        "still open",
    ),
    "two final usages": (_answer(Usage(), Usage()), "final one already"),
    "delta of another choice": (_answer(Opened(0, 0, "text"), Delta(1, 0, "x")), "choice is new"),
    "delta of another part": (_answer(Opened(0, 0, "text"), Delta(0, 1, "x")), "part is new"),
}
CUT: dict[str, list[Event]] = {
    "nothing": [],
    "usage alone": [Usage()],
    "started alone": _answer(),
    "open": _answer(Opened(0, 0, "text"), Delta(0, 0, "a")),
    "closed, not finished": _answer(Opened(0, 0, "text"), Closed(0, 0)),
    "one choice of two": _answer(Opened(0, 0, "text"), Finished(1, "stop")),
}


@pytest.mark.parametrize("name", WHOLE)
def test_check_takes_whole_answers(name: str) -> None:
    check(WHOLE[name])


@pytest.mark.parametrize("name", BROKEN)
def test_check_refuses_what_breaks_the_grammar(name: str) -> None:
    events, words = BROKEN[name]
    with pytest.raises(Failure, match=words) as raised:
        check(events)
    assert raised.value.kind is Kind.UPSTREAM_PROTOCOL
    assert raised.value.detail == repr(events[-1])


@pytest.mark.parametrize("name", CUT)
def test_check_refuses_what_stops_short(name: str) -> None:
    with pytest.raises(Failure) as raised:
        check(CUT[name])
    assert raised.value.kind is Kind.UPSTREAM_TRUNCATED


COMMITS: list[tuple[Batch, bool]] = [
    ([], False),
    ([STARTED], False),
    ([STARTED, Opened(0, 0, "text")], False),
    ([Opened(0, 0, "reasoning")], False),
    ([Closed(0, 0)], False),
    ([Usage()], False),
    ([Notice("route")], False),
    ([Opened(0, 0, "tool", "c", "f")], True),
    ([STARTED, Opened(0, 0, "text"), Delta(0, 0, "a")], True),
    ([Annotated(0, 0, {})], True),
    ([Finished(0, "stop")], True),
    ([RESULT], True),
]


@pytest.mark.parametrize(("batch", "expected"), COMMITS)
def test_commits(batch: Batch, expected: bool) -> None:
    assert commits(batch) is expected


def test_content_is_of_events() -> None:
    assert set(GRAMMAR) >= CONTENT
