"""Who may come in by a web page: the Host and Origin of requests, HTTP and WebSocket alike.

A gateway without keys, on loopback, trusts whoever can reach it, and a web page can: by cross-site requests, and, when
its own host name is made to point at 127.0.0.1, as if it were of the same origin (DNS rebinding). So without keys a
page must be of this host, of loopback, or of an origin that is named; and on loopback the host that is asked for must
be one of this machine's names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from llmg.core.errors import Failure, Kind
from llmg.core.loopback import is_loopback
from llmg.doors.http.refusing import OPENAI, ByPath, refuse

_REMEMBERED: Final = 256  # header values that were found to be good: there are few


class Guard:
    """Stands before an application, and turns away what comes from web pages that nobody named."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None,
        origins: Collection[str],
        off: Callable[[], bool] = lambda: False,
        words: ByPath = OPENAI,
    ) -> None:
        """`hosts`: this server's names besides those of loopback; None: whatever it is called. `origins`: of pages.
        `off`: asked at each request whether keys are needed, which do better. `words`: in which it is said."""
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)
        self._origins = frozenset(origins)
        self._off = off
        self._words = words
        self._good: set[tuple[bytes, bytes]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one connection."""
        if self._off():
            await self._app(scope, receive, send)
            return
        host = origin = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if (host, origin) not in self._good:
            failure = self._judge(host.decode("latin-1").lower(), origin.decode("latin-1").lower())
            if failure is not None:
                await refuse(failure, scope, receive, send, self._words.at(scope["path"]))
                return
            if len(self._good) < _REMEMBERED:
                self._good.add((host, origin))
        await self._app(scope, receive, send)

    def _judge(self, host: str, origin: str) -> Failure | None:
        name = _name(f"//{host}")
        if self._hosts is not None and host and not (is_loopback(name) or name in self._hosts):
            words = f"this gateway is not called {name[:200]!r}: if it is, name it in http.hosts"
            return Failure(Kind.PERMISSION_DENIED, words)
        if not origin or origin in self._origins or origin.partition("://")[2] == host or is_loopback(_name(origin)):
            return None
        words = f"web pages of {origin[:200]!r} may not use this gateway: if they may, name that in http.origins"
        return Failure(Kind.PERMISSION_DENIED, words)


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
