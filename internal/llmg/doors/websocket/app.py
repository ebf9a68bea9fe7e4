"""The WebSocket door as an ASGI application, for one path."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from llmg.core.errors import Failure, invalid
from llmg.doors.http.exchange import Exchange
from llmg.doors.http.guard import Guard
from llmg.doors.http.handshake import shown_by
from llmg.doors.http.refusing import refuse
from llmg.doors.websocket.connection import Connection, Options
from llmg.ports import Provider
from llmg.services.admission import Admission
from llmg.services.explain import Explain
from llmg.wire.openai.errors import encode_error


class Door:
    """Lets connections in: by a key in the handshake's headers, or to show one in their first frame."""

    def __init__(self, pipeline: Provider, admission: Admission, options: Options, explain: Explain | None) -> None:
        self._pipeline = pipeline
        self._admission = admission
        self._options = options
        self._explain = explain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection; one that is none is told so."""
        if scope["type"] != "websocket":
            await _upgrade_required(Exchange(scope, receive, send))
            return
        try:
            shown = shown_by(scope, self._admission)
        except Failure as failure:
            await refuse(failure, scope, receive, send)
            return
        asked = (self._pipeline, self._admission, self._options, shown, self._explain)
        await Connection(scope, receive, send, *asked).run()


async def _upgrade_required(exchange: Exchange) -> None:
    body = encode_error(invalid("this is a WebSocket, and the request is none"))
    await exchange.answer(426, body, [(b"upgrade", b"websocket"), (b"connection", b"upgrade")])


def make_websocket(
    *,
    pipeline: Provider,
    admission: Admission,
    explain: Explain | None = None,
    max_message: int = 32 << 20,
    max_requests: int = 100,
    init_timeout: float = 10.0,
    origins: Collection[str] = (),
) -> ASGIApp:
    """The door, to be mounted at one path.

    `explain` None: routes are not explained here. `max_message`: bytes of a client's frame; `max_requests` at once over
    one socket; `init_timeout`: seconds that a client has to show its key. `origins`: other origins whose pages may
    connect, besides this host's and loopback's.
    """
    options = Options(max_message=max_message, max_requests=max_requests, init_timeout=init_timeout)
    return Guard(Door(pipeline, admission, options, explain), hosts=None, origins=origins)
