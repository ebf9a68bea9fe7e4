"""The judges run by `hack/test judges` alone. What is served with is what is tested: uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import uvloop

from judges.programs import KEY
from support.gateway import ECHO, Process, process

HERE = Path(__file__).parent


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """For the whole directory."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Marks all that stands here as a judge."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("judge")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`llmg serve` with an echo as model `m`, for who has the key, which is an administrator's."""
    folder = tmp_path_factory.mktemp("served")
    config = {**ECHO, "admin": {"keys": {"judges": KEY}}, "catalog": {"file": str(folder / "catalog.json")}}
    with process(folder, config) as gateway:
        yield gateway
