"""What is served with is what is tested: uvloop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from support.gateway import ECHO, Gateway, in_process


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """For the whole directory."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def echo() -> AsyncIterator[Gateway]:
    """A gateway whose model `m` says back what it is asked."""
    async with in_process(ECHO) as gateway:
        yield gateway
