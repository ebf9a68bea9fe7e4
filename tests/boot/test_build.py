"""From settings to providers: each key of the configuration arrives where it has its effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmg.boot import build
from llmg.boot.scopes import LevelScope
from llmg.boot.settings import Settings
from llmg.boot.system import SystemClock
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.request import Chat, Message, Text
from llmg.ports import Running, Spec
from llmg.routing.router import Router
from support.gateway import ECHO, in_process, to_upstream
from support.scopes import root_models
from support.upstream import good, stall, upstream

ENGINE = {"kind": "backend", "engine": "parrot", "external": ["/bin/parrot", "--loud"]}


class Busy:
    """A launcher that has no room. It keeps what was asked of it."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []

    async def ensure(self, spec: Spec, /) -> Running:
        self.specs.append(spec)
        raise Failure(Kind.BACKEND_CRASHED, "no room")

    async def post_mortem(self, spec: Spec, generation: int, /) -> str | None:
        raise AssertionError("nothing has run")


def models(config: dict[str, Any], launcher: Busy | None = None) -> LevelScope:
    return root_models(config, launcher)


async def specs(config: dict[str, Any], *names: str) -> list[Spec]:
    """What the launcher is asked to run for these models."""
    launcher = Busy()
    router = Router(models(config, launcher), SystemClock())
    for name in names:
        chat = Chat(model=name, messages=(Message(role="user", parts=(Text("Hello"),)),))
        context = Context(id="1", request_id="1", door="test", created=0, trail=[])
        with pytest.raises(Failure, match="no room"):
            await answer(router, chat, context)
    return launcher.specs


async def answer(router: Router, chat: Chat, context: Context) -> None:
    async with router.open(chat, context) as batches:
        async for _ in batches:
            pass


def local(model: str, **fields: Any) -> dict[str, Any]:
    return {"targets": [{"provider": "local", "model": model}], **fields}


async def test_an_engine_gets_what_the_configuration_says() -> None:
    provider = ENGINE | {
        "context_size": 512,
        "parallel": 2,
        "threads": 3,
        "options": ["a:b"],
        "env": {"TOKEN": "secret"},
        "startup_timeout": "7s",
    }
    (spec,) = await specs({"providers": {"local": provider}, "models": {"m": local("polly")}}, "m")
    assert spec == Spec(
        engine="parrot",
        model="polly",
        external=("/bin/parrot", "--loud"),
        context_size=512,
        parallel=2,
        threads=3,
        options=("a:b",),
        env=(("TOKEN", "secret"),),
        startup_timeout=7.0,
    )


async def test_one_process_whatever_a_model_is_called() -> None:
    config = {
        "providers": {"local": ENGINE},
        "models": {"chats": local("polly"), "vectors": local("polly", embeddings=True)},
    }
    asked = await specs(config, "chats", "vectors", "local/polly", "local/other")
    assert asked[0] == asked[1] == asked[2]
    assert asked[0].embeddings
    assert asked[3].model == "other"
    assert not asked[3].embeddings


def test_a_model_may_be_without_embeddings() -> None:
    made = models({**ECHO, "models": {name: {"targets": [{"provider": "echo", "model": "m"}]} for name in "ab"}})
    assert build.describe(made.find("a")).operations == ("chat", "embed")
    target = [{"provider": "echo", "model": "m"}]
    made = models({**ECHO, "models": {"a": {"targets": target, "embeddings": False}}})
    assert build.describe(made.find("a")).operations == ("chat",)
    assert build.describe(made.find("a")).created == 1_760_000_000


async def test_embeddings_that_a_model_is_not_for_are_refused() -> None:
    model = {"targets": [{"provider": "echo", "model": "m"}], "embeddings": False}
    async with in_process({**ECHO, "models": {"m": model}}) as gateway:
        response = await gateway.post("/v1/embeddings", {"model": "m", "input": "Hello"})
        assert (response.status, response.error["code"]) == (501, "not_implemented")


def test_a_declared_model_must_be_there(tmp_path: Path) -> None:
    def settings(model: str) -> Settings:
        providers = {"local": {"kind": "backend", "engine": "xllamacpp"}}
        config: dict[str, Any] = {"providers": providers, "models": {"m": local(model)}}
        return Settings(**config, models_dir=tmp_path)

    with pytest.raises(Failure, match="'absent' does not exist"):
        build.check(settings("absent"))
    file = tmp_path / "present.gguf"
    file.write_bytes(b"GGUF and more")
    build.check(settings("present"))
    file.write_bytes(b"<html>")
    with pytest.raises(Failure, match=r"present\.gguf is not a GGUF file"):
        build.check(settings("present"))


async def test_what_an_upstream_is_sent() -> None:
    async with upstream(good) as up:
        provider = {"api_key": "sk-1", "organization": "org-1", "headers": {"X-Team": "blue"}}
        async with in_process(to_upstream(up.base_url, **provider)) as gateway:
            assert (await gateway.chat()).status == 200
            assert (await gateway.chat("up/any/model")).status == 200
        declared, named = up.calls
        assert (declared.method, declared.path) == ("POST", "/v1/chat/completions")
        assert declared.body["model"] == "their-model"
        assert named.body["model"] == "any/model"
        for call in up.calls:
            assert call.headers["authorization"] == "Bearer sk-1"
            assert call.headers["openai-organization"] == "org-1"
            assert call.headers["x-team"] == "blue"
        assert up.connections == 1  # all models of a provider share its connections


async def test_a_models_own_limits_are_over_its_providers() -> None:
    async with upstream(stall) as up:
        config = to_upstream(up.base_url, timeouts={"first_event": "20s"})
        config["models"]["m"]["timeouts"] = {"first_event": "50ms"}
        async with in_process(config) as gateway:
            response = await gateway.chat()
            assert (response.status, response.error["code"]) == (504, "upstream_timeout")


async def test_names_that_clients_make_up_are_forgotten() -> None:
    made = models({"providers": {"echo": {"kind": "echo"}}})
    first = made.find("echo/0").targets[0]
    assert made.find("echo/0").targets[0] is first
    for number in range(300):
        made.find(f"echo/{number}")
    assert made.find("echo/0").targets[0] is not first
