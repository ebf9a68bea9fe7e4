"""The one assembler: from events to the unary answer."""

from __future__ import annotations

import pytest
from msgspec import UNSET

from llmg.core.assemble import Answer, AnswerPart, Choice, assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    Annotated,
    Closed,
    Delta,
    Embedding,
    Embeddings,
    Event,
    Extra,
    Finished,
    Notice,
    Opened,
    PartKind,
    Result,
    Started,
    TokenLogprob,
)
from llmg.core.usage import Usage

STARTED = Started("a", 1, "m")


def _of(*events: Event) -> Answer:
    return assemble([STARTED, *events])


def _said(*deltas: Delta, kind: PartKind = "text") -> list[Event]:
    return [Opened(0, 0, kind), *deltas, Closed(0, 0), Finished(0, "stop")]


def test_text_is_joined() -> None:
    answer = _of(*_said(Delta(0, 0, "Hel"), Delta(0, 0, ""), Delta(0, 0, "lo")))
    expected = Choice(index=0, parts=(AnswerPart(kind="text", data="Hello"),), reason="stop")
    assert answer == Answer(started=STARTED, choices=(expected,))


@pytest.mark.parametrize(("pieces", "whole"), [((), b""), ((b"\x00",), b"\x00"), ((b"\x00", b"\xff"), b"\x00\xff")])
def test_bytes_are_joined(pieces: tuple[bytes, ...], whole: bytes) -> None:
    answer = _of(*_said(*[Delta(0, 0, piece) for piece in pieces], kind="audio"))
    assert answer.choices[0].parts[0].data == whole


def test_a_part_without_deltas_is_empty() -> None:
    assert _of(*_said()).choices[0].parts == (AnswerPart(kind="text", data=""),)


def test_choices_stand_in_order_of_their_index() -> None:
    answer = _of(
        Opened(2, 0, "text"),
        Opened(0, 0, "text"),
        Delta(2, 0, "c"),
        Delta(0, 0, "a"),
        Closed(2, 0),
        Finished(2, "length"),
        Finished(1, "stop"),
        Closed(0, 0),
        Finished(0, "stop", stop_sequence="END"),
    )
    assert [(c.index, [p.data for p in c.parts], c.reason) for c in answer.choices] == [
        (0, ["a"], "stop"),
        (1, [], "stop"),
        (2, ["c"], "length"),
    ]
    assert answer.choices[0].stop_sequence == "END"


def test_parts_keep_their_order_and_names() -> None:
    answer = _of(
        Opened(0, 0, "reasoning"),
        Opened(0, 1, "tool", "call_1", "f"),
        Opened(0, 2, "tool", "call_2", "g"),
        Delta(0, 2, "{}"),
        Delta(0, 1, '{"a":'),
        Delta(0, 1, "1}"),
        Delta(0, 0, "hm"),
        Closed(0, 0),
        Closed(0, 1),
        Closed(0, 2),
        Finished(0, "tool_calls"),
    )
    assert answer.choices[0].parts == (
        AnswerPart(kind="reasoning", data="hm"),
        AnswerPart(kind="tool", data='{"a":1}', id="call_1", name="f"),
        AnswerPart(kind="tool", data="{}", id="call_2", name="g"),
    )


def test_log_probabilities_and_annotations_add_up() -> None:
    a, b = TokenLogprob("a", -1.0), TokenLogprob("b", -2.0, (98,), (TokenLogprob("c", -3.0),))
    answer = _of(
        Opened(0, 0, "text"),
        Delta(0, 0, "a", (a,)),
        Annotated(0, 0, {"n": 1}),
        Delta(0, 0, "b", (b,)),
        Annotated(0, 0, {"n": 2}),
        Closed(0, 0),
        Finished(0, "stop"),
    )
    assert answer.choices[0].parts[0].logprobs == (a, b)
    assert answer.choices[0].parts[0].annotations == ({"n": 1}, {"n": 2})


def test_the_last_usage_holds() -> None:
    answer = _of(Usage(output_tokens=1, final=False), Finished(0, "stop"), Usage(output_tokens=2))
    assert answer.usage == Usage(output_tokens=2)


def test_notices_are_kept() -> None:
    assert _of(Notice("cache", {"age": 1}), Finished(0, "stop")).notices == (Notice("cache", {"age": 1}),)


def test_extra_merges_field_by_field_and_the_last_wins() -> None:
    answer = assemble(
        [
            Started("a", 1, "m", extra=Extra(dialect="d", envelope={"x": 1, "y": 1})),
            Opened(0, 0, "text"),
            Delta(0, 0, "a", UNSET, Extra(dialect="d", envelope={"y": 2}, choice={"p": 1}, item={"q": 1, "r": 1})),
            Delta(0, 0, "b", UNSET, Extra(dialect="d", item={"r": 2})),
            Closed(0, 0),
            Finished(0, "stop", extra=Extra(dialect="d", envelope={"z": 3}, choice={"s": 1})),
            Usage(extra=Extra(dialect="d", envelope={"t": 4}, item={"price": 5})),
        ]
    )
    assert answer.extra == Extra(dialect="d", envelope={"x": 1, "y": 2, "z": 3, "t": 4})
    assert answer.choices[0].extra == Extra(dialect="d", choice={"p": 1, "s": 1}, item={"q": 1, "r": 2})
    assert answer.usage == Usage(extra=Extra(dialect="d", item={"price": 5}))


def test_extra_around_alone_leaves_the_choice_without() -> None:
    answer = _of(Finished(0, "stop", extra=Extra(dialect="d", envelope={"z": 3})), Usage(extra=UNSET))
    assert answer.choices[0].extra is UNSET
    assert answer.extra == Extra(dialect="d", envelope={"z": 3})


def test_a_tool_call_keeps_its_own_extra() -> None:
    answer = _of(
        Opened(0, 0, "tool", "c", "f"),
        Delta(0, 0, "{", UNSET, Extra(dialect="d", choice={"p": 1}, item={"signature": "s"})),
        Delta(0, 0, "}", UNSET, Extra(dialect="d", item={"more": 1})),
        Closed(0, 0),
        Finished(0, "tool_calls"),
    )
    assert answer.choices[0].parts[0].extra == Extra(dialect="d", item={"signature": "s", "more": 1})
    assert answer.choices[0].extra == Extra(dialect="d", choice={"p": 1})


def test_a_result_is_an_answer() -> None:
    vectors = Embeddings((Embedding(0, (1.0, 2.0)),))
    answer = _of(Result(vectors, Extra(dialect="d", envelope={"x": 1})), Usage(input_tokens=3))
    assert answer.result == vectors
    assert answer.usage == Usage(input_tokens=3)
    assert answer.extra == Extra(dialect="d", envelope={"x": 1})


@pytest.mark.parametrize(
    "events",
    [
        [],
        [Finished(0, "stop")],
        [STARTED],
        [STARTED, Usage()],
        [STARTED, Opened(0, 0, "text"), Delta(0, 0, "a")],
        [STARTED, Opened(0, 0, "text"), Delta(0, 0, "a"), Closed(0, 0)],
        [STARTED, Opened(1, 0, "text"), Finished(0, "stop")],
    ],
)
def test_an_answer_cut_short_is_none(events: list[Event]) -> None:
    with pytest.raises(Failure) as raised:
        assemble(events)
    assert raised.value.kind is Kind.UPSTREAM_TRUNCATED
