"""A provider without a model, for demos and tests: says the last user message back, word by word."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from llmg.core.context import Context
from llmg.core.events import (
    Batch,
    Closed,
    Delta,
    Embedding,
    Embeddings,
    Event,
    Finished,
    Opened,
    Reason,
    Result,
    Started,
)
from llmg.core.request import Chat, Embed, Request, Text
from llmg.core.usage import Usage
from llmg.ports import Answering

DIMENSIONS = 64
_WORDS = re.compile(r"\S+\s*|\s+")

Script = Callable[[Request, Context], AsyncIterator[Batch]]


async def echo(request: Request, context: Context) -> AsyncIterator[Batch]:
    """The default script. A stream gives a batch per word; a unary answer is one batch."""
    batches = _embed(request, context) if isinstance(request, Embed) else _chat(request, context)
    if request.stream:
        for batch in batches:
            yield batch
    else:
        yield [event for batch in batches for event in batch]


class Echo:
    """Answers by a script, which is an async generator over (request, context)."""

    def __init__(self, script: Script = echo) -> None:
        self._script = script

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return _Playing(self._script(request, context))


class _Playing:
    __slots__ = ("_batches",)

    def __init__(self, batches: AsyncIterator[Batch]) -> None:
        self._batches = batches

    async def __aenter__(self) -> AsyncIterator[Batch]:
        return self._batches

    async def __aexit__(self, *_: object) -> None:
        close = getattr(self._batches, "aclose", None)
        if close is not None:
            await close()


def _chat(request: Chat, context: Context) -> Iterator[Sequence[Event]]:
    said = _last_said(request)
    words = _WORDS.findall(said)
    limit = request.sampling.max_tokens
    reason: Reason = "stop"
    if isinstance(limit, int) and limit < len(words):
        words, reason = words[:limit], "length"
    yield [Started(context.id, context.created, request.model)]
    for choice in range(request.n):
        yield [Opened(choice, 0, "text")]
        for word in words:
            yield [Delta(choice, 0, word)]
        yield [Closed(choice, 0), Finished(choice, reason)]
    asked = sum(len(_words(part.text)) for m in request.messages for part in m.parts if isinstance(part, Text))
    yield [Usage(input_tokens=asked, output_tokens=len(words) * request.n, source="estimated")]


def _last_said(request: Chat) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            return "".join(part.text for part in message.parts if isinstance(part, Text))
    return ""


def _words(text: str) -> list[str]:
    return _WORDS.findall(text)


def _embed(request: Embed, context: Context) -> Iterator[Sequence[Event]]:
    vectors = tuple([Embedding(i, _vector(repr(item), request)) for i, item in enumerate(request.inputs)])
    tokens = sum(len(_words(item)) if isinstance(item, str) else len(item) for item in request.inputs)
    yield [
        Started(context.id, context.created, request.model),
        Result(Embeddings(vectors)),
        Usage(input_tokens=tokens, source="estimated"),
    ]


def _vector(text: str, request: Embed) -> tuple[float, ...]:
    """The same text gives the same vector of length 1; there is no meaning in it."""
    count = request.dimensions if isinstance(request.dimensions, int) else DIMENSIONS
    numbers = array("b", hashlib.shake_256(text.encode()).digest(count))
    norm = sum(number * number for number in numbers) ** 0.5 or 1.0
    return tuple(number / norm for number in numbers)
