"""The exported schema is current, and each example operation runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from graph.serving import serving
from llmg.doors.graphql.schema import sdl

GRAPH = Path(__file__).parents[2] / "graph"
OPERATIONS = sorted(GRAPH.glob("operations/*.graphql"))


def test_the_schema_is_current() -> None:
    assert (GRAPH / "schema.graphql").read_text() == sdl()


def test_there_are_examples() -> None:
    assert len(OPERATIONS) >= 6


@pytest.mark.parametrize("path", OPERATIONS, ids=lambda path: path.stem)
async def test_each_example_runs(path: Path) -> None:
    query = path.read_text()
    async with serving() as door:
        if "subscription" in query:
            response = await door.post({"query": query}, accept="text/event-stream")
            assert response.body.endswith(b"event: complete\ndata: \n\n")
            assert b'"errors"' not in response.body
            assert b'"text":"Hello "' in response.body
        else:
            answer = await door.ask(query)
            assert set(answer) == {"data"}, answer
            assert all(answer["data"].values())


async def test_nothing_else_imports_the_door() -> None:
    """Its libraries cost memory: they are loaded where the door is open."""
    code = "import sys, llmg.boot.cli, llmg.doors.rest.app; sys.exit('llmg.doors.graphql' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
