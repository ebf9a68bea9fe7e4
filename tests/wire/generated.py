"""Strategies for the wire's property tests: chunked bytes, requests and streams of events as OpenAI's dialect has them.

What a strategy gives is canonical for that dialect: what it has two ways to say is given in the way that comes back.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from llmg.core.context import Context
from llmg.core.events import (
    Closed,
    Delta,
    Event,
    Extra,
    Finished,
    Opened,
    PartKind,
    Reason,
    Started,
    TokenLogprob,
)
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
    Output,
    Part,
    Reasoning,
    Refusal,
    Role,
    Sampling,
    SchemaOutput,
    Text,
    TextOutput,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from llmg.core.usage import Usage

T = TypeVar("T")
Draw = st.DrawFn

CONTEXT = Context(id="a1", request_id="r1", door="test", created=1_760_000_000)

_letters = st.characters(exclude_categories=["Cs"])  # no halves of surrogate pairs
texts = st.text(_letters, max_size=12)
words = st.text(_letters, min_size=1, max_size=12)
names = st.text("abcdefgh_", min_size=1, max_size=8)
numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, plain, max_size=3)
unknown = st.dictionaries(names.map("x_".__add__), plain, min_size=1, max_size=2)


def maybe(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[T | UnsetType]:
    return st.just(UNSET) | strategy


def tuples(strategy: st.SearchStrategy[T], min_size: int = 0, max_size: int = 3) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(strategy, min_size=min_size, max_size=max_size).map(tuple)


@st.composite
def cuts(draw: Draw, data: bytes) -> list[bytes]:
    """The same bytes in any pieces, empty ones among them."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


# --- requests ------------------------------------------------------------------------------------------------------

_files = st.builds(File, maybe(names), maybe(texts), maybe(names), maybe(unknown))
_opaque = st.builds(lambda raw: Opaque("openai", {"type": "x_new", **raw}), unknown)
_content = (
    st.builds(Text, texts, maybe(unknown))
    | st.builds(Image, names, maybe(st.sampled_from(["low", "high"])), maybe(unknown))
    | st.builds(Audio, texts, names, maybe(unknown))
    | _files
    | _opaque
)
_calls = st.builds(ToolCall, names, names, texts, maybe(unknown))
_alone: st.SearchStrategy[tuple[Part, ...]] = st.builds(Text, texts).map(lambda part: (part,))
_several: st.SearchStrategy[tuple[Part, ...]] = tuples(_content, min_size=2)


@st.composite
def messages(draw: Draw) -> Message:
    role: Role = draw(st.sampled_from(get_args(Role)))
    parts: tuple[Part, ...] = draw(_alone | _several)
    if role == "tool":
        parts = (ToolResult(draw(names), parts),)
    elif role == "assistant":
        thoughts: list[Part] = draw(st.lists(st.builds(Reasoning, words), max_size=1))
        said: tuple[Part, ...] = draw(st.just(()) | _alone | _several | st.builds(Refusal, words).map(lambda r: (r,)))
        parts = (*thoughts, *said, *draw(st.lists(_calls, max_size=2)))
    return Message(role=role, parts=parts, name=draw(maybe(names)), extra=draw(maybe(unknown)))


_samplings = st.builds(
    Sampling,
    temperature=maybe(st.floats(0, 2)),
    top_p=maybe(st.floats(0, 1)),
    top_k=maybe(st.integers(0, 100)),
    min_p=maybe(st.floats(0, 1)),
    frequency_penalty=maybe(st.floats(-2, 2)),
    presence_penalty=maybe(st.floats(-2, 2)),
    repetition_penalty=maybe(st.floats(0.5, 2)),
    logit_bias=maybe(st.dictionaries(st.integers(0, 99999).map(str), st.floats(-100, 100), max_size=2)),
    max_tokens=maybe(st.integers(1, 10**6)),
)
_tools = st.builds(
    Tool, name=names, description=maybe(texts), parameters=maybe(objects), strict=maybe(st.booleans())
) | st.builds(lambda raw: Opaque("openai", {"type": "x_tool", **raw}), unknown)
_choices = (
    st.sampled_from([ToolChoice(mode="none"), ToolChoice(mode="auto"), ToolChoice(mode="required")])
    | names.map(lambda name: ToolChoice(mode="named", name=name))
    | st.builds(lambda raw: Opaque("openai", {"type": "x_choice", **raw}), unknown)
)
_outputs: st.SearchStrategy[Output] = (
    st.just(TextOutput())
    | st.just(JsonOutput())
    | st.builds(SchemaOutput, schema=objects, name=names, description=maybe(texts), strict=maybe(st.booleans()))
    | st.builds(GrammarOutput, texts)
)


@st.composite
def chats(draw: Draw) -> Chat:
    logprobs = draw(maybe(st.booleans()))
    return Chat(
        model=draw(names),
        messages=draw(tuples(messages(), min_size=1)),
        tools=draw(maybe(tuples(_tools, max_size=2))),
        tool_choice=draw(maybe(_choices)),
        parallel_tool_calls=draw(maybe(st.booleans())),
        output=draw(maybe(_outputs)),
        sampling=draw(_samplings),
        n=draw(st.integers(1, 128)),
        stop=draw(maybe(tuples(texts))),
        seed=draw(maybe(st.integers(-(2**63), 2**63 - 1))),
        logprobs=logprobs,
        top_logprobs=draw(maybe(st.integers(0, 20))) if logprobs is True else UNSET,
        reasoning_effort=draw(maybe(names)),
        user=draw(maybe(texts)),
        metadata=draw(maybe(st.dictionaries(texts, texts, max_size=2))),
        stream=draw(st.booleans()),
        extra=draw(maybe(unknown)),
    )


embeds = st.builds(
    Embed,
    model=names,
    inputs=tuples(words, min_size=1) | tuples(tuples(st.integers(0, 99999), min_size=1), min_size=1),
    dimensions=maybe(st.integers(1, 4096)),
    packed=st.booleans(),
    user=maybe(texts),
    extra=maybe(unknown),
)

# --- answers -------------------------------------------------------------------------------------------------------

_rivals = st.builds(TokenLogprob, texts, st.floats(-50, 0), st.none() | tuples(st.integers(0, 255)))
logprobs = st.builds(
    TokenLogprob,
    texts,
    st.floats(-50, 0),
    st.none() | tuples(st.integers(0, 255)),
    tuples(_rivals, max_size=2),
    maybe(unknown),
)
_reasons: list[tuple[Reason, str | UnsetType]] = [
    ("stop", UNSET),
    ("length", UNSET),
    ("tool_calls", UNSET),
    ("content_filter", UNSET),
    ("function_call", UNSET),
    ("other", "x_reason"),
]
_SPOKEN: list[PartKind] = ["text", "reasoning", "refusal"]
_counts = st.integers(0, 10**6)
usages = st.builds(
    Usage,
    input_tokens=_counts,
    output_tokens=_counts,
    cached_tokens=_counts,
    cache_written_tokens=_counts,
    reasoning_tokens=_counts,
    input_audio_tokens=_counts,
    output_audio_tokens=_counts,
    accepted_prediction_tokens=_counts,
    rejected_prediction_tokens=_counts,
    extra=maybe(st.builds(Extra, dialect=st.just("openai"), item=unknown)),
)


@st.composite
def _extras(draw: Draw, /, **where: st.SearchStrategy[dict[str, Any]]) -> Extra:
    return Extra(dialect="openai", **{name: draw(strategy) for name, strategy in where.items()})


_at_delta = maybe(_extras(envelope=st.just({}) | unknown, choice=unknown, item=st.just({}) | unknown))
_at_tool = maybe(_extras(item=unknown))


@st.composite
def _texts(draw: Draw, choice: int, part: int, kind: PartKind, likely: bool) -> list[Event]:
    out: list[Event] = [Opened(choice, part, kind)]
    for word in draw(st.lists(words, min_size=1, max_size=3)):
        lps = draw(tuples(logprobs, min_size=1, max_size=2)) if likely and kind != "reasoning" else UNSET
        out.append(Delta(choice, part, word, lps, draw(_at_delta)))
    return [*out, Closed(choice, part)]


@st.composite
def _tool(draw: Draw, choice: int, part: int) -> list[Event]:
    id, name = f"call_{choice}_{part}", draw(names)
    out: list[Event] = [Opened(choice, part, "tool", id, name)]
    extra = draw(_at_tool)
    if extra is not UNSET:
        out.append(Delta(choice, part, "", UNSET, extra))
    return [*out, *[Delta(choice, part, piece) for piece in draw(st.lists(words, max_size=3))]]


@st.composite
def _interleaved(draw: Draw, lists: list[list[Event]]) -> list[Event]:
    """Each list's events in their order, the lists in any."""
    left = [list(events) for events in lists if events]
    out: list[Event] = []
    while left:
        events = left[draw(st.integers(0, len(left) - 1))]
        out.append(events.pop(0))
        left = [events for events in left if events]
    return out


@st.composite
def _choice(draw: Draw, choice: int) -> list[Event]:
    kinds: list[PartKind] = []
    likely = draw(st.booleans())
    for kind in draw(st.lists(st.sampled_from(_SPOKEN), max_size=3)):
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    out: list[Event] = []
    for part, kind in enumerate(kinds):
        out += draw(_texts(choice, part, kind, likely))
    calls = draw(st.integers(0, 2))
    # Tool calls open in their order; then their arguments may come in any.
    opened = [draw(_tool(choice, len(kinds) + n)) for n in range(calls)]
    out += [events.pop(0) for events in opened]
    out += draw(_interleaved(opened))
    out += [Closed(choice, len(kinds) + n) for n in range(calls)]
    if not calls and not {"text", "refusal"} & set(kinds) and draw(st.booleans()):
        out += [Opened(choice, len(kinds), "text"), Closed(choice, len(kinds))]
    reason, native = draw(st.sampled_from(_reasons))
    return [*out, Finished(choice, reason, native, extra=draw(_at_delta))]


@st.composite
def streams(draw: Draw) -> list[Event]:
    """The events of a whole streamed chat answer."""
    start = Started(
        CONTEXT.id,
        draw(st.integers(1, 2**31)),
        "m",
        draw(maybe(names)),
        draw(maybe(names)),
        "u1",
        draw(maybe(_extras(envelope=unknown))),
    )
    choices = [draw(_choice(choice)) for choice in range(draw(st.integers(1, 3)))]
    usage = draw(st.none() | usages)
    return [start, *draw(_interleaved(choices)), *([] if usage is None else [usage])]
