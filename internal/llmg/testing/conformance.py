"""What every provider must keep to, adapters and wrappers alike."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.assemble import Answer, assemble
from llmg.core.context import Context
from llmg.core.events import Event, check
from llmg.core.request import Request
from llmg.ports import Provider

_PATIENCE = 60.0  # seconds for an answer
_EXIT = 5.0  # seconds for leaving


def a_context(id: str = "a1", **fields: Any) -> Context:
    """A context as a door makes it."""
    return Context(id=id, request_id=f"req_{id}", door="test", created=1_760_000_000, **fields)


async def collect(provider: Provider, request: Request, context: Context | None = None) -> list[Event]:
    """All events of an answer."""
    async with provider.open(request, context or a_context()) as batches:
        return [event async for batch in batches for event in batch]


async def assert_conforms(provider: Provider, request: Request) -> None:
    """Asserts it of this provider with this request, whose answer must be the same each time.

    The stream and the unary answer obey the grammar and say the same; a client may leave at any moment, whereupon
    the exit is prompt and the provider still answers the next one.
    """
    async with asyncio.timeout(_PATIENCE):
        streamed = await collect(provider, replace(request, stream=True))
        check(streamed)
        await _leave_early(provider, replace(request, stream=True), batches=0)
        await _leave_early(provider, replace(request, stream=True), batches=1)
        await _leave_early(provider, replace(request, stream=False), batches=0)
        whole = await collect(provider, replace(request, stream=False))
        check(whole)
    said, expected = _told(assemble(streamed)), _told(assemble(whole))
    assert said == expected, f"the stream says {said}, the unary answer {expected}"


async def _leave_early(provider: Provider, request: Request, batches: int) -> None:
    answering = provider.open(request, a_context("left"))
    stream = await answering.__aenter__()
    for _ in range(batches):
        await anext(stream)
    async with asyncio.timeout(_EXIT):
        await answering.__aexit__(None, None, None)


def _told(answer: Answer) -> tuple[Any, ...]:
    """What the client is told, without what may differ: ids, times, and how sure the model was to the last digit."""
    choices = [
        (choice.index, [(part.kind, part.data, part.name) for part in choice.parts], choice.reason)
        for choice in answer.choices
    ]
    usage = answer.usage
    return choices, answer.result, None if usage is UNSET else (usage.input_tokens, usage.output_tokens)
