"""HTTP headers to gRPC metadata, and back, by grpc-gateway's rules.

In: `Grpc-Metadata-NAME` as NAME; who asks, the trace and the request's id under their own names; what browsers and
proxies say as `grpcgateway-NAME`; `x-forwarded-for` and `x-forwarded-host` with what this hop adds.
Out: initial metadata as `Grpc-Metadata-NAME`, trailing metadata as `Grpc-Trailer-NAME`, but for our own.
Names that are gRPC's or of the connection pass neither way.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from starlette.types import Scope

from llmg.core import way
from llmg.core.errors import Failure, Kind
from llmg.doors.gateway.upstream import Metadata
from llmg.services.admission import LONGEST, seconds
from llmg.wire.jsonapi import Refused, Source, refused

_PREFIX: Final = b"grpc-metadata-"
_TIMEOUT: Final = b"grpc-timeout"
_OWN_TIMEOUT: Final = b"x-llmg-timeout"
# What passes under its own name.
_OWN: Final = frozenset({b"authorization", b"x-api-key", b"traceparent", b"tracestate", b"baggage", b"x-llmg-session"})
_SHOWN: Final = frozenset({b"authorization", b"x-api-key"})
# IANA's permanent headers, which clients and proxies set: passed with a prefix.
_PERMANENT: Final = frozenset(
    {
        *(b"accept", b"accept-charset", b"accept-language", b"accept-ranges", b"authorization", b"cache-control"),
        *(b"content-type", b"cookie", b"date", b"expect", b"from", b"host", b"if-match", b"if-modified-since"),
        *(b"if-none-match", b"if-schedule-tag-match", b"if-unmodified-since", b"max-forwards", b"origin", b"pragma"),
        *(b"referer", b"user-agent", b"via", b"warning"),
    }
)
_NAMES: Final[Mapping[bytes, tuple[str, ...]]] = {
    name: (
        *([name.decode()] if name in _OWN else []),
        *([f"grpcgateway-{name.decode()}"] if name in _PERMANENT else []),
    )
    for name in _OWN | _PERMANENT
}
# What passes neither way: it is HTTP/2's, gRPC's or the connection's, or set by us.
_RESERVED: Final = frozenset(
    {
        *("te", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "trailer", "host"),
        *("content-length", "content-type", "user-agent", "x-request-id", "x-forwarded-for", "x-forwarded-host"),
    }
)
_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_WAIT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PLAIN: Final = frozenset(way.HEADERS)  # go out as they are; the request's id is the exchange's


def incoming(scope: Scope, request_id: str) -> Metadata:
    """A request's metadata. Raises Refused (invalid_request), naming the header."""
    out: list[tuple[str, str | bytes]] = [("x-request-id", request_id)]
    forwarded = host = ""
    for name, raw in scope["headers"]:
        known = _NAMES.get(name)
        if known is not None:
            value = raw.decode("latin-1")
            if _VALUE.fullmatch(value):
                out += [(key, value) for key in known]
            if name == b"host":
                host = host or value
        elif name.startswith(_PREFIX):
            out.append(_asked(name, raw))
        elif name == b"x-forwarded-for":
            forwarded = raw.decode("latin-1")
        elif name == b"x-forwarded-host":
            host = raw.decode("latin-1")
    client = scope.get("client")
    hops = [*([forwarded] if forwarded else []), *([client[0]] if client else [])]
    added = (("x-forwarded-for", ", ".join(hops)), ("x-forwarded-host", host))
    return [*out, *[(name, value) for name, value in added if value and _VALUE.fullmatch(value)]]


def who(scope: Scope, request_id: str) -> Metadata:
    """Of a request's metadata, which may be wrong elsewhere, who asks."""
    shown = [(name.decode(), raw.decode("latin-1")) for name, raw in scope["headers"] if name in _SHOWN]
    return [("x-request-id", request_id), *(one for one in shown if _VALUE.fullmatch(one[1]))]


def _asked(header: bytes, raw: bytes) -> tuple[str, str | bytes]:
    name, value = header[len(_PREFIX) :].decode("latin-1").lower(), raw.decode("latin-1")
    if not _NAME.fullmatch(name) or name in _RESERVED or name.startswith(("grpc-", "grpcgateway-")):
        raise _bad(header, "it may not be set by clients")
    if name.endswith("-bin"):
        try:
            return name, base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise _bad(header, "expected base64") from None
    if not _VALUE.fullmatch(value):
        raise _bad(header, "expected printable ASCII")
    return name, value


def timeout(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds, as `Grpc-Timeout` says (`1500m`), or our own `x-llmg-timeout`; None: neither is there.

    LONGEST at most. Raises Refused (invalid_request).
    """
    raw = headers.get(_TIMEOUT)
    if raw is not None:
        found = _WAIT.fullmatch(raw.decode("latin-1"))
        if found is None:
            raise _bad(_TIMEOUT, "expected up to eight digits and one of H, M, S, m, u, n")
        return min(int(found[1]) * _SECONDS[found[2]], LONGEST)
    own = headers.get(_OWN_TIMEOUT)
    if own is None:
        return None
    try:
        return seconds(own.decode("latin-1"))
    except Failure as failure:
        raise refused(failure.kind, failure.message, Source(header=failure.param)) from None


def _bad(header: bytes, words: str) -> Refused:
    name = header.decode("latin-1")
    return refused(Kind.INVALID_REQUEST, f"invalid header '{name}': {words}", Source(header=name))


def outgoing(initial: Iterable[tuple[str, str | bytes]], trailing: Metadata) -> list[tuple[bytes, bytes]]:
    """An answer's headers, of the metadata that is known when it begins."""
    return [*_headers(initial, "grpc-metadata-"), *_headers(trailing, "grpc-trailer-")]


def _headers(metadata: Iterable[tuple[str, str | bytes]], prefix: str) -> Iterator[tuple[bytes, bytes]]:
    for name, given in metadata:
        if name in _RESERVED or name.startswith(("grpc-", ":")):
            continue
        value = base64.b64encode(given).decode() if isinstance(given, bytes) else given
        if _VALUE.fullmatch(value):
            yield (name if name in _PLAIN else prefix + name).encode(), value.encode()
