"""What is asked, and what a client learns, in the words of no door."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from llmg.core.assemble import Answer
from llmg.core.errors import Kind
from llmg.core.usage import Usage
from llmg.ports import Provider


class Asked(Struct, frozen=True, kw_only=True):
    """A request: `openai` in OpenAI's shape (REST, WebSocket), `gateway` in the JSON of chat.proto (gRPC, GraphQL).

    That both say the same is tested: providers see the same request by all doors.
    """

    openai: dict[str, Any]
    gateway: dict[str, Any]


def asked(text: str = "Hello", *, openai: Mapping[str, Any] = {}, gateway: Mapping[str, Any] = {}) -> Asked:
    """A request of one message, and more fields, or others."""
    return Asked(
        openai={"model": "m", "messages": [{"role": "user", "content": text}], **openai},
        gateway={"model": "m", "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}], **gateway},
    )


class Told(Struct, frozen=True, kw_only=True):
    """What a client learns; ids and times are none of it. `field`: the last name in the path of the field at fault."""

    choices: tuple[Any, ...] = ()
    usage: Usage | UnsetType = UNSET
    failure: Kind | None = None
    field: str | None = None
    retry_after: float | None = None


def told(answer: Answer) -> Told:
    """Of an answer."""
    choices = [
        (
            choice.index,
            tuple((part.kind, part.data, part.id, part.name, part.logprobs) for part in choice.parts),
            choice.reason,
            choice.native_reason,
        )
        for choice in answer.choices
    ]
    return Told(choices=tuple(choices), usage=answer.usage)


def failed(kind: Kind, path: str | None, retry_after: float | None = None) -> Told:
    """Of a failure. Doors name fields by paths of their own: `chat.top_logprobs`, `/topLogprobs`, `topLogprobs`."""
    names = re.findall(r"[A-Za-z_]\w*", path or "")
    field = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", names[-1]).lower() if names else None
    return Told(failure=kind, field=field, retry_after=retry_after)


class Way(Struct, frozen=True, kw_only=True):
    """What a client learns of the way of its request. `times` in milliseconds: in queues, and of upstreams. `limits`:
    limit, what remains, and the seconds until all of it is there again."""

    route: str | None = None
    policy: str | None = None
    attempts: int = 1
    times: tuple[float, float] | None = None
    limits: Mapping[str, tuple[int, int, float]] = {}


def by_headers(headers: Mapping[str, str | bytes]) -> Way:
    """By headers, or by metadata."""
    given = {name: value for name, value in headers.items() if isinstance(value, str)}
    found = re.fullmatch(r"queue;dur=([\d.]+), upstream;dur=([\d.]+)", given.get("server-timing", ""))
    limits = {
        kind: tuple(given[f"x-ratelimit-{what}-{kind}"] for what in ("limit", "remaining", "reset"))
        for kind in ("requests", "tokens")
        if f"x-ratelimit-limit-{kind}" in given
    }
    return Way(
        route=given.get("x-llmg-route"),
        policy=given.get("x-llmg-policy"),
        attempts=int(given.get("x-llmg-attempts", 1)),
        times=None if found is None else (float(found[1]), float(found[2])),
        limits={kind: (int(limit), int(left), _seconds(reset)) for kind, (limit, left, reset) in limits.items()},
    )


def _seconds(text: str) -> float:
    """Of `6m0s`, `1.5s`, `120ms`."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    assert re.fullmatch(r"([\d.]+(h|ms|m|s))+", text), text
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|m|s)", text))


def by_facts(facts: Mapping[str, Any]) -> Way:
    """By what frames and `extensions` tell, in JSON."""
    given = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): value for name, value in facts.items()}
    return Way(
        route=given.get("route"),
        policy=given.get("policy"),
        attempts=given.get("attempts", 1),
        times=(given["queue_ms"], given["upstream_ms"]) if "queue_ms" in given else None,
        limits={
            kind: (one["limit"], one["remaining"], one["reset"]) for kind, one in given.get("rate_limits", {}).items()
        },
    )


class Reading(ABC):
    """An answer under way. `way`: what was told of its way, when it has come to its end."""

    way = Way()

    @abstractmethod
    async def some(self) -> None:
        """Waits for its first content. A whole answer has none before all is there."""

    @abstractmethod
    async def rest(self) -> Told:
        """Waits for its end."""


class Client(ABC):
    """Somebody at a door, with a key or without."""

    @abstractmethod
    def begin(self, asked: Asked, *, timeout: float | None = None) -> AbstractAsyncContextManager[Reading]:
        """Asks. Who leaves it before the end lets the client leave. `timeout`: the request's deadline in seconds."""

    async def ask(self, asked: Asked, *, timeout: float | None = None) -> Told:
        """Asks, and waits for the end of the answer."""
        async with self.begin(asked, timeout=timeout) as reading:
            return await reading.rest()


class Served(ABC):
    """A server with the door."""

    @abstractmethod
    def client(
        self, *, key: str | None = None, session: str | None = None, slow: bool = False
    ) -> AbstractAsyncContextManager[Client]:
        """Comes to the door, with a key and a session. `slow`: with as little room for what is not read as can be."""

    @abstractmethod
    async def drain(self, grace: float) -> None:
        """Tells the server to stop; returns when it has."""


class Door(Struct, frozen=True, kw_only=True):
    """A row: how it is served, and whether answers come in pieces there."""

    serve: Callable[[Provider, Mapping[str, str]], AbstractAsyncContextManager[Served]]
    streams: bool
