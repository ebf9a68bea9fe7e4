"""A catalog in Redis (or Valkey), for any number of replicas.

One hash holds the version and the tenants, one stream the log of changes, one channel tells of them. A change is one
script: all of it happens, or nothing. What was refused is in a stream of its own: anybody may be refused as often as he
likes, and only so many entries are kept. Both take the ids of their entries from a third stream, so that what happened
first has the lower one, whichever it is in. Names have a hash tag, so that a cluster keeps them together.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Final, NoReturn

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from llmg.core.errors import Failure, Kind, invalid
from llmg.ports import AuditEntry, Conflict, Document

log = structlog.get_logger("llmg.catalog")

# KEYS: the log, the stream that ids are from. ARGV: entry, how many entries.
_APPEND: Final = """
local id = redis.call('XADD', KEYS[2], 'MAXLEN', 1, '*', 'id', '')
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], id, 'entry', ARGV[1])
"""

# KEYS: the catalog, the log, the stream that ids are from. ARGV: the version before and after, tenants, entry, how many
# entries, the channel.
# Asked for the same change again, as by a client whose connection broke, it says that it was made.
_SAVE: Final = """
local held = redis.call('HMGET', KEYS[1], 'version', 'entry')
if held[1] == ARGV[2] and held[2] == ARGV[4] then return 1 end
if (held[1] or '0') ~= ARGV[1] then return 0 end
local id = redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'id', '')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], id, 'entry', ARGV[4])
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'tenants', ARGV[3], 'entry', ARGV[4])
redis.call('PUBLISH', ARGV[6], ARGV[2])
return 1
"""

_decode_tenants: Final = msgspec.json.Decoder(dict[str, Any]).decode
_decode_entry: Final = msgspec.json.Decoder(AuditEntry).decode
_encode: Final = msgspec.json.Encoder().encode
_TOKEN: Final = re.compile(r"\d{1,19}-\d{1,19}\Z", re.ASCII)
_WAIT: Final = (0.05, 1.0)  # seconds before a connection is tried again: the first time, and at most


class RedisCatalog:
    """See CatalogStore."""

    def __init__(self, redis: Redis, *, prefix: str = "llmg", poll: float = 10.0, kept: int = 10_000) -> None:
        """`poll`: seconds after which it is looked at, though nothing was told; `kept`: changes in the log, and as many
        that were refused, or some more. The connections are the caller's to close."""
        self._redis = redis
        self._poll = poll
        self._kept = kept
        self._key = f"{{{prefix}:catalog}}"
        self._log = f"{self._key}:audit"
        self._refused = f"{self._log}:refused"
        self._ids = f"{self._log}:ids"
        self._channel = f"{self._key}:changes"
        self._save = redis.register_script(_SAVE)
        self._append = redis.register_script(_APPEND)
        self._known = 0  # the latest version seen

    async def load(self) -> Document:
        """See CatalogStore. Raises Failure (internal) when it was there, and is gone."""
        with _translated():
            version, tenants = await self._redis.hmget(self._key, ["version", "tenants"])
        document = Document(int(version or 0), _tenants(tenants))
        self._check(document.version)
        self._known = document.version
        return document

    async def save(self, document: Document, entry: AuditEntry, /) -> None:
        """See CatalogStore."""
        with _translated():
            saved = await self._save(
                keys=[self._key, self._log, self._ids],
                args=[
                    document.version - 1,
                    document.version,
                    _encode(document.tenants),
                    _encode(entry),
                    self._kept,
                    self._channel,
                ],
            )
        if not saved:
            raise Conflict
        self._known = document.version

    async def watch(self, seen: int, changed: Callable[[int], Awaitable[None]], /) -> NoReturn:
        """See CatalogStore. A catalog that is gone, as from a Redis that was emptied, is not told: what is known
        is kept."""
        wait, most = _WAIT
        while True:
            try:
                async with self._redis.pubsub() as signal:
                    await signal.subscribe(self._channel)
                    while True:
                        seen = await self._tell(seen, changed)  # what came while nobody listened, too
                        wait = _WAIT[0]
                        _check_cancelled()
                        await signal.get_message(timeout=self._poll)
            except (RedisError, OSError) as error:
                log.warning("the catalog's Redis can't be reached", reason=str(error), again_in=wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, most)

    async def _tell(self, seen: int, changed: Callable[[int], Awaitable[None]]) -> int:
        version = int(await self._redis.hget(self._key, "version") or 0)
        if version == 0 and seen > 0:
            log.error("the catalog is gone from Redis: the one that is known is kept", version=seen)
        elif version != seen:
            await changed(version)
        return version

    async def append(self, entry: AuditEntry, /) -> None:
        """See CatalogStore."""
        with _translated():
            await self._append(keys=[self._refused, self._ids], args=[_encode(entry), self._kept])

    async def entries(self, size: int, token: str, /) -> tuple[Sequence[AuditEntry], str]:
        """See CatalogStore. The token is the last entry's id."""
        end = _end(token)
        with _translated():
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for stream in (self._log, self._refused):
                        pipeline.xrevrange(stream, end, "-", size + 1)
                    streams: Any = await pipeline.execute()
            except ResponseError:
                raise _bad_token() from None
        found = [(_id(id), fields) for stream in streams for id, fields in stream]
        found.sort(key=itemgetter(0), reverse=True)
        page = found[:size]
        entries = [_decode_entry(fields.get(b"entry") or fields["entry"]) for _, fields in page]
        if len(found) == len(page):
            return entries, ""
        milliseconds, number = page[-1][0]
        return entries, f"{milliseconds}-{number}"

    def _check(self, version: int) -> None:
        if version == 0 and self._known:
            words = "the catalog is gone from Redis: put it back, with `llmg catalog import` for one"
            raise Failure(Kind.INTERNAL, words)


def _check_cancelled() -> None:
    """The client sends by asyncio.wait_for, which, before Python 3.12, loses a cancellation that comes just then."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _tenants(raw: Any) -> dict[str, Any]:
    try:
        return {} if raw is None else _decode_tenants(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(Kind.INTERNAL, f"the catalog in Redis can't be used: {error}") from None


def _id(id: Any) -> tuple[int, int]:
    milliseconds, _, number = (id.decode() if isinstance(id, bytes) else str(id)).partition("-")
    return int(milliseconds), int(number)


def _end(token: str) -> str:
    """Where to go on."""
    if not token:
        return "+"
    if not _TOKEN.match(token):
        raise _bad_token()
    return f"({token}"


def _bad_token() -> Failure:
    return invalid("invalid 'page_token': expected one of an answer's next_page_token", "page_token")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        words = "the catalog's Redis can't be reached"
        raise Failure(Kind.UPSTREAM_UNAVAILABLE, words, detail=f"{type(error).__name__}: {error}") from None
