"""HTTP to upstreams: a narrow transport over aiohttp, so that the client under it can be exchanged.

Pooled and kept alive, without cookies (they would leak between tenants), redirects or a total time limit (streams may
last; the limits are the caller's). aiohttp's errors become Failures here, by the tables below, and nowhere else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from llmg.core.errors import Failure, Kind

_FRESH: ContextVar[bool] = ContextVar("fresh", default=True)
_RETRIES: Final = 2
_LINGER: Final = 1.0  # seconds


class Connector(aiohttp.TCPConnector):
    """Notes for each request whether its connection is a new one."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        _FRESH.set(True)
        return await super()._create_connection(*args, **kwargs)


def endpoint(base_url: str, path: str) -> URL:
    """A URL as the transport wants it, made once."""
    return URL(base_url.rstrip("/") + path)


def fixed(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Headers as the transport wants them, made once."""
    return CIMultiDictProxy(CIMultiDict(headers))


def connecting_within(seconds: float) -> aiohttp.ClientTimeout:
    """The one limit that is the transport's own, made once."""
    return aiohttp.ClientTimeout(total=None, sock_connect=seconds, ceil_threshold=3600)


class Exchange:
    """An upstream's answer: its head, and its body as it comes. `close` ends the upstream call if it still runs."""

    __slots__ = ("_linger", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, linger: Callable[[aiohttp.ClientResponse], None]) -> None:
        self._response = response
        self._linger = linger
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises Failure (upstream_protocol) above `limit` bytes, (upstream_truncated) when cut."""
        chunks = [await self.read_some()]
        size = len(chunks[0])
        while not self._response.content.at_eof() and (chunk := await self.read_some()):
            size += len(chunk)
            if size > limit:
                raise Failure(Kind.UPSTREAM_PROTOCOL, f"the upstream's answer is larger than {limit} bytes")
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_some(self) -> bytes:
        """What has arrived, at least a byte; empty at the end."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _cut(error) from error

    def close(self, *, answered: bool = False) -> None:
        """Gives the connection back if the body was read to its end, else closes it, which ends the upstream call.

        `answered`: all that matters was read, only the body's end has not come yet. It is waited for elsewhere.
        """
        if self._response.content.at_eof():
            self._response.release()
        elif answered:
            self._linger(self._response)
        else:
            self._response.close()


class Transport:
    """One pool of connections for all upstreams. Made and closed inside the running loop."""

    def __init__(self, max_connections: int = 0) -> None:
        """`max_connections` to one host; 0: no limit."""
        self._limit = max_connections
        self._session: aiohttp.ClientSession | None = None
        self._lingering: set[asyncio.Task[None]] = set()

    async def post(self, url: URL, headers: Mapping[str, str], body: bytes, timeout: aiohttp.ClientTimeout) -> Exchange:
        """Sends, and waits for the head of the answer. Raises Failure (upstream_unavailable, upstream_timeout ...).

        A kept-alive connection that the upstream had closed meanwhile costs a new try, as nothing was answered on it.
        """
        for retries_left in range(_RETRIES, -1, -1):
            _FRESH.set(False)
            try:
                response = await self._client().post(
                    url, headers=headers, data=BytesPayload(body), timeout=timeout, allow_redirects=False
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if _FRESH.get() or not retries_left or isinstance(error, aiohttp.ClientConnectorError):
                    raise _unanswered(error) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise _unanswered(error) from error
            else:
                return Exchange(response, self._linger)
        raise AssertionError("unreachable")

    async def get(self, url: str) -> Exchange:
        """Asks, and waits for the head of the answer. Raises Failure (upstream_unavailable ...)."""
        try:
            return Exchange(await self._client().get(URL(url), allow_redirects=False), self._linger)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _unanswered(error) from error

    async def close(self) -> None:
        """Closes every connection."""
        for task in self._lingering:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    def _linger(self, response: aiohttp.ClientResponse) -> None:
        task = asyncio.get_running_loop().create_task(_drain(response))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=Connector(limit=0, limit_per_host=self._limit, keepalive_timeout=60, ttl_dns_cache=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=1 << 18,
            )
        return self._session


async def _drain(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(_LINGER):
            while await response.content.readany():
                pass
        response.release()
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()  # the connection is not worth more: the next call makes a new one


_UNANSWERED: tuple[tuple[type[BaseException], Kind, str], ...] = (
    (aiohttp.ServerTimeoutError, Kind.UPSTREAM_TIMEOUT, "connecting to the upstream took too long"),
    (aiohttp.ClientConnectorDNSError, Kind.UPSTREAM_UNAVAILABLE, "the upstream's host name can't be resolved"),
    (ssl.SSLError, Kind.UPSTREAM_UNAVAILABLE, "no secure connection to the upstream can be made"),
    (aiohttp.ClientSSLError, Kind.UPSTREAM_UNAVAILABLE, "no secure connection to the upstream can be made"),
    (aiohttp.ClientConnectorError, Kind.UPSTREAM_UNAVAILABLE, "the upstream can't be reached"),
    (aiohttp.ServerDisconnectedError, Kind.UPSTREAM_UNAVAILABLE, "the upstream hung up before it answered"),
    (aiohttp.ClientOSError, Kind.UPSTREAM_UNAVAILABLE, "the connection to the upstream broke before it answered"),
    (aiohttp.InvalidURL, Kind.INTERNAL, "the upstream's address is not valid"),
    (aiohttp.ClientResponseError, Kind.UPSTREAM_PROTOCOL, "the upstream's answer is no HTTP"),
)


def _unanswered(error: BaseException) -> Failure:
    for kind_of_error, kind, message in _UNANSWERED:
        if isinstance(error, kind_of_error):
            return Failure(kind, message, detail=repr(error))
    return Failure(Kind.UPSTREAM_UNAVAILABLE, "the call to the upstream failed", detail=repr(error))


def _cut(error: BaseException) -> Failure:
    return Failure(Kind.UPSTREAM_TRUNCATED, "the connection to the upstream broke in its answer", detail=repr(error))
