"""The same request through every door: the same for the provider, the same answer, the same failure.

`rows.SCENARIOS` says what the provider does, `columns.DOORS` how it is asked: either grows by a row.
"""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.request import Chat
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.testing.scripted import Scripted
from llmg.wire.gateway import decode_chat
from scenarios.asking import Asked, Door
from scenarios.columns import DOORS
from scenarios.rows import SCENARIOS, Scenario


def plain(request: object) -> Chat:
    """A request without what its dialect alone knows, and how it is to be answered."""
    assert isinstance(request, Chat)
    return replace(request, origin=UNSET, stream=False)


def expected(asked: Asked) -> Chat:
    """What the provider must get to see."""
    return plain(decode_chat(json_format.ParseDict(asked.gateway, pb.Chat()), stream=False))


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_a_scenario_through_a_door(scenario: Scenario, door: Door) -> None:
    provider = Scripted(scenario.script)
    async with door.serve(provider, {}) as served, served.client() as client:
        assert await client.ask(scenario.asked) == scenario.told
    assert all(call.exits == call.entered.is_set() for call in provider.calls)
    for call in provider.calls:
        assert plain(call.request) == expected(scenario.asked)
        assert isinstance(call.request, Chat)
        assert call.request.stream == door.streams
