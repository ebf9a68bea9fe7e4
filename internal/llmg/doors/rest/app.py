"""The REST door as an ASGI application: OpenAI's paths, and the few of our own that operators need."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from llmg.core.errors import Failure, Kind
from llmg.doors.http.refusing import ByPath, Words, refuse
from llmg.doors.rest.exchange import Endpoint, Exchange, Guarded
from llmg.services.admission import Admission
from llmg.services.models import Model, Models


class Own(Endpoint):
    """What is no door's: it speaks as the doors do that are near."""

    def __init__(self, words: ByPath) -> None:
        self._words = words

    def words(self, scope: Scope) -> Words:
        """See Endpoint."""
        return self._words.at(scope["path"])


class Health(Own):
    """Alive: answers as long as the process does."""

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        await exchange.answer(200, b'{"status":"ok"}')


class Ready(Own):
    """Ready: says no from the moment on at which the process drains."""

    def __init__(self, words: ByPath, draining: Callable[[], bool]) -> None:
        super().__init__(words)
        self._draining = draining

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        if self._draining():
            raise Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down")
        await exchange.answer(200, b'{"status":"ready"}')


class Version(Own):
    """What is running."""

    def __init__(self, words: ByPath, version: Callable[[], dict[str, str]]) -> None:
        super().__init__(words)
        self._version = version

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        await exchange.answer(200, msgspec.json.encode(self._version()))


class ListModels(Guarded):
    """`GET /v1/models`."""

    def __init__(self, models: Models, admission: Admission) -> None:
        super().__init__(admission)
        self._models = models

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        principal = self.admit(exchange)
        data = [_model(model) for model in self._models.list(principal)]
        await exchange.answer(200, msgspec.json.encode({"object": "list", "data": data}))


class GetModel(Guarded):
    """`GET /v1/models/{id}`; an id may hold slashes."""

    def __init__(self, models: Models, admission: Admission) -> None:
        super().__init__(admission)
        self._models = models

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        principal = self.admit(exchange)
        model = self._models.get(exchange.scope["path_params"]["id"], principal)
        await exchange.answer(200, msgspec.json.encode(_model(model)))


def _model(model: Model) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owner}


class NotFound(Own):
    """Every other path, in the words of the door that is near."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else a server may send our way."""
        if scope["type"] == "http":
            await super().__call__(scope, receive, send)
        elif scope["type"] == "websocket":
            failure = Failure(Kind.NOT_FOUND, f"there is no WebSocket at {scope['path'][:200]}")
            await refuse(failure, scope, receive, send, self.words(scope))

    methods = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})

    def __init__(self, words: ByPath, paths: Iterable[str]) -> None:
        """`paths`: what there is, for a hint."""
        super().__init__(words)
        self._paths = [path for path in paths if not path.startswith("/assets/")]

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        path = exchange.scope["path"]
        near = difflib.get_close_matches("/v1" + path.rstrip("/"), self._paths, n=1, cutoff=0.9)
        near = near or difflib.get_close_matches(path.rstrip("/"), self._paths, n=1, cutoff=0.9)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Failure(Kind.NOT_FOUND, f"there is nothing at {exchange.scope['method']} {path[:200]}{hint}")


class Rest(Convertor[str]):
    """The rest of a path, whatever it holds: Starlette's own ends at a line's end. In patterns: `{name:rest}`."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """See Convertor."""
        return value

    def to_string(self, value: str) -> str:
        """See Convertor."""
        return value


register_url_convertor("rest", Rest())


class Door:
    """Dispatches by path: what every request needs by a look-up, the rest by Starlette's router."""

    def __init__(
        self,
        exact: Mapping[str, ASGIApp],
        patterns: Mapping[str, ASGIApp],
        sockets: Mapping[str, ASGIApp],
        words: ByPath,
    ) -> None:
        self.words = words
        self._exact = exact
        self._sockets = sockets
        self._router = Router(
            [Route(path, app, methods=None) for path, app in patterns.items()],
            redirect_slashes=False,
            default=NotFound(words, exact),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call."""
        known = self._exact if scope["type"] == "http" else self._sockets
        await (known.get(scope.get("path", "")) or self._router)(scope, receive, send)


class Routes(Struct, frozen=True):
    """What answers at which path: whole paths, and Starlette's patterns; `sockets`, whole paths of WebSockets.

    `words`: at and below which paths other words are spoken than OpenAI's; `""`: everywhere else.
    """

    exact: Mapping[str, ASGIApp] = {}
    patterns: Mapping[str, ASGIApp] = {}
    sockets: Mapping[str, ASGIApp] = {}
    words: Mapping[str, Words] = {}


def openai_routes(
    *, chat: ASGIApp, embeddings: ASGIApp, models: Models, admission: Admission, explain: ASGIApp | None = None
) -> Routes:
    """OpenAI's paths, and in their manner where requests would go, if there is somebody to `explain` it."""
    exact: dict[str, ASGIApp] = {
        "/v1/chat/completions": chat,
        "/v1/embeddings": embeddings,
        "/v1/models": ListModels(models, admission),
    }
    if explain is not None:
        exact["/v1/routes/explain"] = explain
    return Routes(exact, {"/v1/models/{id:rest}": GetModel(models, admission)})


def make_door(
    *routes: Routes, version: Callable[[], dict[str, str]] = dict, draining: Callable[[], bool] = lambda: False
) -> Door:
    """All of these, and the paths that operators need."""
    words = ByPath({path: words for some in routes for path, words in some.words.items()})
    exact: dict[str, ASGIApp] = {
        "/healthz": Health(words),
        "/readyz": Ready(words, draining),
        "/version": Version(words, version),
    }
    patterns: dict[str, ASGIApp] = {}
    sockets: dict[str, ASGIApp] = {}
    for some in routes:
        exact.update(some.exact)
        patterns.update(some.patterns)
        sockets.update(some.sockets)
    return Door(exact, patterns, sockets, words)
