"""The catalog, through every door: what a key may ask for and see, as the settings say, and who may administer it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from dependency_injector import providers

from llmg.boot.container import Container
from llmg.boot.settings import Settings
from llmg.core.errors import Kind
from scenarios.asking import Administrator, Asked, Behind, Door, Look, asked, failed, vectors_asked
from scenarios.columns import ADMINISTRATORS, DOORS, EMBEDDERS, READERS
from scenarios.rows_vectors import TEXT

ACME, BETA, OPS = ("sk-" + letter * 32 for letter in "abc")
SEEN = {ACME: ["fast", "m", "n"], BETA: ["n", "slow"]}
OTHERS = {ACME: ["slow"], BETA: ["fast", "m", "echo/x"]}  # another tenant's, and what is not allowed
MISSING = failed(Kind.MODEL_NOT_FOUND, "model")


def of_echo(model: str) -> dict[str, Any]:
    """A model, of the provider that repeats what it is told."""
    return {"targets": [{"provider": "echo", "model": model}]}


def tenant(key: str, **fields: Any) -> dict[str, Any]:
    """A tenant with one key."""
    return {"teams": {"t": {"groups": {"g": {"endpoints": {"e": {"keys": [{"id": "k", "key": key}]}}}}}}, **fields}


CONFIG: Mapping[str, Any] = {
    "providers": {"echo": {"kind": "echo"}},
    "models": {"m": of_echo("m"), "n": of_echo("n")},
    "admin": {"keys": {"ops": OPS}},
    "tenants": {
        "acme": tenant(ACME, models={"fast": "m"}),
        "beta": tenant(BETA, models={"slow": "n"}, allow=["n"]),
    },
}


@pytest.fixture
async def gateway() -> AsyncIterator[Behind]:
    """What the gateway itself puts its doors before, by these settings."""
    container = Container(settings=Settings(**CONFIG), launcher=providers.Object(None))
    try:
        yield Behind(
            pipeline=container.pipeline(),
            let_in=container.admission(),
            models=container.model_service(),
            admin=container.admin(),
        )
    finally:
        await container.needs().close()


def of(asks: Asked, model: str) -> Asked:
    """The same of another model."""
    assert isinstance(asks.openai, dict)
    return Asked(openai={**asks.openai, "model": model}, gateway={**asks.typed, "model": model})


@pytest.mark.parametrize(
    ("door", "asks"),
    [
        *(pytest.param(door, asked(), id=name) for name, door in DOORS.items()),
        *(pytest.param(door, vectors_asked(**TEXT), id=f"{name}, vectors") for name, door in EMBEDDERS.items()),
    ],
)
async def test_what_a_key_may_ask_for(gateway: Behind, door: Door, asks: Asked) -> None:
    async with door.serve(gateway) as served:
        for key in (ACME, BETA):
            async with served.client(key=key) as client:
                for model in SEEN[key]:
                    assert (await client.ask(of(asks, model))).failure is None
                for model in OTHERS[key]:
                    assert await client.ask(of(asks, model)) == MISSING


@pytest.mark.parametrize("look", READERS.values(), ids=READERS)
async def test_what_a_key_sees(gateway: Behind, look: Look) -> None:
    for key in (ACME, BETA):
        async with look.at(gateway, key) as reader:
            assert await reader.models() == SEEN[key]
            for model in SEEN[key]:
                assert await reader.model(model) == [model]
            for model in OTHERS[key]:
                assert await reader.model(model) == look.missing


@pytest.mark.parametrize("look", ADMINISTRATORS.values(), ids=ADMINISTRATORS)
async def test_who_may_administer(gateway: Behind, look: Look) -> None:
    async with look.at(gateway, OPS) as reader:
        assert isinstance(reader, Administrator)
        assert await reader.tenants() == ["tenants/acme", "tenants/beta"]
    async with look.at(gateway, ACME) as reader:
        assert isinstance(reader, Administrator)
        assert await reader.tenants() == failed(Kind.PERMISSION_DENIED, None)
