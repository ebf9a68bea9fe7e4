"""What policies see of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from llmg.core.context import Context
from llmg.core.request import Chat, Embed, Part, Reasoning, Refusal, Request, Text, ToolCall, ToolResult

_CHARACTERS: Final = 4  # a token, as English has it
_ATTACHED: Final = 1000 * _CHARACTERS  # a picture, a sound, a document
_MOST_BLOCKS: Final = 2048  # beyond them a prompt's rest is not looked at

_encode = msgspec.json.Encoder().encode


class View:
    """The `ports.Asked` of a request. Nothing is computed before a policy asks for it."""

    __slots__ = ("_blocks", "_context", "_input", "_request", "_size")

    def __init__(self, request: Request, context: Context) -> None:
        self._request = request
        self._context = context
        self._size = 0
        self._blocks: Sequence[int] = ()
        self._input = 0

    @property
    def session(self) -> str | None:
        """See `ports.Asked`."""
        return self._context.session

    @property
    def user(self) -> str | None:
        """See `ports.Asked`."""
        return self._request.user or None

    def header(self, name: str, /) -> str | None:
        """See `ports.Asked`."""
        return self._context.header(name)

    @property
    def input_tokens(self) -> int:
        """See `ports.Asked`. Four characters are taken for a token, what is attached for 1000."""
        if not self._input:
            self._input = max(1, _characters(self._request) // _CHARACTERS)
        return self._input

    @property
    def output_tokens(self) -> int | None:
        """See `ports.Asked`."""
        if isinstance(self._request, Embed):
            return 0
        most = self._request.sampling.max_tokens
        return None if isinstance(most, msgspec.UnsetType) else most * self._request.n

    def blocks(self, size: int, /) -> Sequence[int]:
        """See `ports.Asked`. A request for embeddings has none: no prefix of it is cached anywhere."""
        if self._size != size:
            self._size = size
            self._blocks = () if isinstance(self._request, Embed) else _chained(_prompt(self._request), size)
        return self._blocks


def _prompt(request: Chat) -> bytes:
    """Tools and messages, in the order in which models read them. Another turn goes on where this one ends."""
    return _encode((request.tools or (), request.messages))


def _chained(prompt: bytes, size: int) -> list[int]:
    end = min(len(prompt) // size, _MOST_BLOCKS) * size
    hashed = 0
    return [hashed := hash((hashed, prompt[start : start + size])) for start in range(0, end, size)]


def _characters(request: Request) -> int:
    if isinstance(request, Embed):
        return sum([len(text) if isinstance(text, str) else len(text) * _CHARACTERS for text in request.inputs])
    tools = len(_encode(request.tools)) if request.tools else 0
    return tools + sum([_length(part) for message in request.messages for part in message.parts])


def _length(part: Part) -> int:
    if isinstance(part, Text | Reasoning | Refusal):
        return len(part.text)
    if isinstance(part, ToolCall):
        return len(part.name) + len(part.arguments)
    if isinstance(part, ToolResult):
        return sum([_length(inner) for inner in part.parts])
    return _ATTACHED
