"""Limits, through every door: who is held back, what is told of it, and of what is left."""

from __future__ import annotations

import asyncio
import math
from typing import TypeAlias

import pytest

from llmg.boot.system import SystemClock
from llmg.core.context import SILENT, Principal
from llmg.core.errors import Kind
from llmg.core.levels import Level, Limits
from llmg.ports import Provider
from llmg.routing.catalog import Catalog
from llmg.routing.limits.limited import Limited
from llmg.routing.limits.local import Local
from llmg.services.admission import Admission, Authenticator
from llmg.testing.clocks import FakeClock
from llmg.testing.ids import CountingIds
from llmg.testing.scripted import Gate, Script, Scripted, saying
from scenarios.asking import Asked, Behind, Door, asked, failed, vectors_asked
from scenarios.columns import DOORS, EMBEDDERS
from scenarios.rows_vectors import ONE, TEXT, gives
from support.http import PATIENCE

Case: TypeAlias = tuple[Door, Asked, Script]
CHAT, VECTORS = (asked(), Script(steps=saying("hi"))), (vectors_asked(**TEXT), gives(*ONE))
CASES: dict[str, Case] = {
    **{name: (door, *CHAT) for name, door in DOORS.items()},
    **{f"{name}, vectors": (door, *VECTORS) for name, door in EMBEDDERS.items()},
}
RESET = 60.75  # seconds: the second of the request is forgotten when it is 60 seconds ago, all of it
through_each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def limited(provider: Provider, limits: Limits) -> Behind:
    """A pipeline with limits; it is a quarter past a second, and stays so."""
    catalog, clock = Catalog(anonymous=Principal(levels=(Level(name="tenants/a", limits=limits),))), SystemClock()
    let_in = Admission(Authenticator(lambda: catalog, clock), clock, CountingIds(), SILENT)
    return Behind(pipeline=Limited(provider, Local(FakeClock(1000.25))), let_in=let_in)


@through_each
async def test_requests_a_minute(case: Case) -> None:
    door, asks, answer = case
    provider, learned, limits = Scripted(answer), [], []
    async with door.serve(limited(provider, Limits(requests=2))) as served, served.client() as client:
        for _ in range(3):
            async with client.begin(asks) as reading:
                learned.append(await reading.rest())
                limits.append(reading.way.limits)
    assert [told.failure for told in learned] == [None, None, Kind.RATE_LIMITED]
    assert learned[2].retry_after is not None
    assert math.ceil(learned[2].retry_after) == math.ceil(RESET)  # HTTP's header is of whole seconds
    assert limits == [{"requests": (2, left, RESET)} for left in (1, 0, 0)]
    assert len(provider.calls) == 2


@through_each
async def test_requests_at_the_same_time(case: Case) -> None:
    door, asks, answer = case
    gate = Gate()
    provider = Scripted(Script(steps=[gate]), answer)
    async with (
        door.serve(limited(provider, Limits(concurrent=1))) as served,
        served.client() as first,
        served.client() as second,
    ):
        async with first.begin(asks), asyncio.timeout(PATIENCE):
            await gate.reached.wait()
            assert await second.ask(asks) == failed(Kind.RATE_LIMITED, None)
            assert len(provider.calls) == 1
        async with asyncio.timeout(PATIENCE):
            await provider.calls[0].exited.wait()
        assert (await second.ask(asks)).failure is None
