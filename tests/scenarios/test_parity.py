"""The same request through every door: the same for the provider, the same answer, the same failure.

`rows`, `rows_vectors` and `rows_raw` say what is asked and what the provider does, `columns` how it is asked: each
grows by a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.request import Chat, Request
from llmg.gatewayapi.v1.chat_pb2 import Chat as ChatMessage
from llmg.gatewayapi.v1.embeddings_pb2 import CreateEmbeddingsRequest
from llmg.testing.scripted import Scripted
from llmg.wire.gateway import decode_chat, decode_embed
from scenarios.asking import Asked, Door, behind
from scenarios.columns import DOORS, EMBEDDERS
from scenarios.rows import SCENARIOS, Scenario
from scenarios.rows_raw import RAW, RAW_VECTORS, RawRow
from scenarios.rows_vectors import VECTORS


def plain(request: Request) -> Request:
    """A request without what its dialect alone knows, and how it is to be answered."""
    if isinstance(request, Chat):
        return replace(request, origin=UNSET, stream=False)
    return replace(request, origin=UNSET, packed=False)


def chat(asked: Asked) -> Request:
    """What the provider must get to see."""
    return plain(decode_chat(ParseDict(asked.typed, ChatMessage()), stream=False))


def embed(asked: Asked) -> Request:
    """What the provider must get to see of a request for vectors."""
    return plain(decode_embed(ParseDict(asked.typed, CreateEmbeddingsRequest())))


async def through(door: Door, scenario: Scenario, expected: Callable[[Asked], Request]) -> None:
    """A scenario through a door."""
    provider = Scripted(scenario.script)
    async with door.serve(behind(provider)) as served, served.client() as client:
        assert await client.ask(scenario.asked) == scenario.told
    assert all(call.exits == call.entered.is_set() for call in provider.calls)
    for call in provider.calls:
        assert plain(call.request) == expected(scenario.asked)
        assert call.request.stream == door.streams


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_a_scenario_through_a_door(scenario: Scenario, door: Door) -> None:
    await through(door, scenario, chat)


@pytest.mark.parametrize("door", EMBEDDERS.values(), ids=EMBEDDERS)
@pytest.mark.parametrize("scenario", VECTORS.values(), ids=VECTORS)
async def test_a_scenario_of_vectors_through_a_door(scenario: Scenario, door: Door) -> None:
    await through(door, scenario, embed)


def what_can_be_sent(rows: Mapping[str, RawRow], doors: Mapping[str, Door], of: str = "") -> Iterator[Any]:
    """What is no request, to each door that it can be sent to at all."""
    for what, row in rows.items():
        for name, door in doors.items():
            if row.can_be_sent(door):
                yield pytest.param(row, door, id=f"{what}{of}-{name}")


@pytest.mark.parametrize(
    ("row", "door"), [*what_can_be_sent(RAW, DOORS), *what_can_be_sent(RAW_VECTORS, EMBEDDERS, ", for vectors")]
)
async def test_what_is_no_request_through_a_door(row: RawRow, door: Door) -> None:
    """After which a good request is answered."""
    provider, told = Scripted(row.script), row.told_by(door)
    async with door.serve(behind(provider)) as served, served.client() as client:
        assert await client.ask(row.asked) == told
        assert (await client.ask(row.good)).failure is None
    assert len(provider.calls) == (1 if told.failure else 2)
