"""What is asked, and what a client learns, in the words of no door."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from llmg.core.assemble import Answer
from llmg.core.errors import Kind
from llmg.core.usage import Usage
from llmg.ports import Provider
from llmg.services.admin import Admin
from llmg.services.admission import Admission
from llmg.services.models import Models
from llmg.wire.openai.embeddings import floats
from support.doors import admission


class Asked(Struct, frozen=True, kw_only=True):
    """A request: `openai` in OpenAI's shape (REST, WebSocket), `gateway` in the JSON of the protos (gRPC, GraphQL).

    That both say the same is tested: providers see the same request by all doors. `Raw` is sent as it is, whatever it
    is, amid what a door wraps its requests in; `protobuf` is what gRPC sends of it.
    """

    openai: dict[str, Any] | Raw
    gateway: dict[str, Any] | Raw
    protobuf: bytes | None = None

    @property
    def typed(self) -> dict[str, Any]:
        """`gateway`, which is not raw."""
        assert isinstance(self.gateway, dict)
        return self.gateway


def asked(text: str = "Hello", *, openai: Mapping[str, Any] = {}, gateway: Mapping[str, Any] = {}) -> Asked:
    """A request of one message, and more fields, or others."""
    return Asked(
        openai={"model": "m", "messages": [{"role": "user", "content": text}], **openai},
        gateway={"model": "m", "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}], **gateway},
    )


def vectors_asked(*, openai: Mapping[str, Any], gateway: Mapping[str, Any]) -> Asked:
    """A request for vectors."""
    return Asked(openai={"model": "m", **openai}, gateway={"model": "m", **gateway})


class Told(Struct, frozen=True, kw_only=True):
    """What a client learns; ids and times are none of it. `vectors`: their indices and values. `field`: the last name
    in the path of the field at fault."""

    choices: tuple[Any, ...] = ()
    vectors: tuple[tuple[int, tuple[float, ...]], ...] = ()
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
    vectors = answer.result.vectors if answer.result is not UNSET else ()
    return Told(
        choices=tuple(choices),
        vectors=tuple((vector.index, tuple(floats(vector.values))) for vector in vectors),
        usage=answer.usage,
    )


def failed(kind: Kind, path: str | None, retry_after: float | None = None) -> Told:
    """Of a failure. Doors name fields by paths of their own: `chat.top_logprobs`, `/topLogprobs`, `topLogprobs`."""
    names = re.findall(r"[A-Za-z_]\w*", path or "")
    field = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", names[-1]).lower() if names else None
    return Told(failure=kind, field=_OPENAI.get(field, field) if field else None, retry_after=retry_after)


_OPENAI = {"inputs": "input"}  # what the gateway's own messages call otherwise


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


class Behind(Struct, frozen=True, kw_only=True):
    """What a door is put before."""

    pipeline: Provider
    let_in: Admission
    models: Models | None = None
    admin: Admin | None = None


def behind(pipeline: Provider, keys: Mapping[str, str] = {}) -> Behind:
    """Lets in who has one of these keys, by name; everybody, where there are none."""
    return Behind(pipeline=pipeline, let_in=admission(keys))


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
    """A row: how it is served, whether answers come in pieces there, and in which shape it is asked, where what is no
    request can be sent to it at all."""

    serve: Callable[[Behind], AbstractAsyncContextManager[Served]]
    streams: bool = False
    raw: Shape | None = None


Shape = Literal["openai", "websocket", "gateway", "graphql", "grpc"]


class Reader(ABC):
    """Somebody at a door who looks around, with a key."""

    @abstractmethod
    async def models(self) -> list[str] | Told:
        """The names of all models; what is told, if they are not."""

    @abstractmethod
    async def model(self, name: str) -> list[str] | Told:
        """That of one."""


class Administrator(Reader):
    """Somebody at a door where the catalog is administered."""

    @abstractmethod
    async def tenants(self) -> list[str] | Told:
        """The names of all tenants."""


class Look(Struct, frozen=True, kw_only=True):
    """A row: how somebody with that key comes to the door, and what is told there of a model that is not there."""

    at: Callable[[Behind, str], AbstractAsyncContextManager[Reader]]
    missing: Told
    administers: bool = False
