"""How a door says no. What is answered before a door is reached is said in its words, too: by one table of paths."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from typing import Final, NamedTuple

from starlette.types import Receive, Scope, Send

from llmg.core.errors import Failure, Kind
from llmg.wire.openai.errors import STATUS, encode_error

_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}\Z")
# Names, not secrets: one seed from the system instead of a system call each.
_random: Final = partial(random.Random(os.urandom(32)).getrandbits, 96)


class Refusal(NamedTuple):
    """Status, content type and body of the answer to a request that failed."""

    status: int
    kind: bytes
    body: bytes


Words = Callable[[Failure, Mapping[bytes, bytes], str, int | None], Refusal]
"""A door's own: what it says of a failure, to a request with these headers and of that id, under that status of HTTP's;
None: the failure's."""


def openai(failure: Failure, headers: Mapping[bytes, bytes], request_id: str, status: int | None = None) -> Refusal:
    """OpenAI's words, which are those of every path that is no other door's."""
    return Refusal(status or STATUS[failure.kind][0], b"application/json", encode_error(failure))


class ByPath:
    """Whose words are spoken where: at a door's path, and below it."""

    def __init__(self, doors: Mapping[str, Words] = {}) -> None:
        """By paths without a slash at the end; `""` is everywhere else, where it is OpenAI's if none is said."""
        self._elsewhere = doors.get("", openai)
        self._doors = [(f"{path}/", doors[path]) for path in sorted(doors, key=len, reverse=True) if path]

    def at(self, path: str) -> Words:
        """Those of a request's path."""
        below = f"{path}/"
        return next((words for door, words in self._doors if below.startswith(door)), self._elsewhere)


OPENAI: Final = ByPath()


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """A request's, as its client says, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.match(given) else f"req_{_random():024x}"


def consequences(failure: Failure) -> list[tuple[bytes, bytes]]:
    """The headers by which HTTP itself tells what is to be done about a failure."""
    headers = []
    if failure.kind is Kind.UNAUTHENTICATED:
        headers.append((b"www-authenticate", b"Bearer"))
    if failure.retry_after is not None:
        headers.append((b"retry-after", b"%d" % ceil(failure.retry_after)))
    if failure.kind in (Kind.REQUEST_TOO_LARGE, Kind.CLIENT_TIMEOUT):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    return headers


async def refuse(failure: Failure, scope: Scope, receive: Receive, send: Send, words: Words = openai) -> None:
    """Answers with the failure alone, whether it is a request or a connection that is not yet accepted."""
    given = dict(scope["headers"])
    id = request_id(given)
    status, kind, body = words(failure, given, id, None)
    prefix = "http"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008, "reason": failure.message[:120]})
            return
        prefix = "websocket.http"
    headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        *consequences(failure),
        (b"x-request-id", id.encode()),
    ]
    await send({"type": f"{prefix}.response.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body})
