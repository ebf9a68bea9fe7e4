"""Pages for browsers: the REST gateway's documentation and GraphiQL. All that they load comes from here.

What other projects made lies in assets/, compressed, as manifest.json there lists it (hack/assets fetches it). An
asset's address holds its hash, so that a browser never asks for it again.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

DOCS: Final = "/docs"
OPENAPI: Final = "/openapi.json"

_ASSETS: Final = files(__package__) / "assets"
_OWN: Final = ("docs.start.js", "graphiql.start.css", "graphiql.start.js")
_TYPES: Final = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "json": b"application/json",
}
_WEIGHT: Final = re.compile(rb"q=(0(\.[0-9]*)?|1(\.0*)?)")  # RFC 9110, 12.4.2; of any length
_FOREVER: Final = b"public, max-age=31536000, immutable"
_ASK_AGAIN: Final = b"no-cache"
# Only what this origin serves, and no script within a page itself.
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src %b; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STYLES: Final = {"graphiql.html": b"'self' 'unsafe-inline'"}  # its dialogs make style elements, of varying content


class File:
    """An ASGI application that answers with one file; it lies compressed in memory, or in the package."""

    def __init__(self, name: str, packed: bytes | None = None, *, digest: str, caching: bytes) -> None:
        """`packed`: the gzipped content; None: the package's. `digest` is the content's, in hex."""
        kind = name.rpartition(".")[2]
        self._name = name
        self._given = packed
        self._tag = b'W/"%b"' % digest[:32].encode()  # weak: the same for both encodings
        self._headers = [
            (b"content-type", _TYPES[kind]),
            (b"cache-control", caching),
            (b"etag", self._tag),
            (b"vary", b"accept, accept-encoding" if kind == "html" else b"accept-encoding"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if kind == "html":
            policy = _POLICY % _STYLES.get(name, b"'self'")
            self._headers += [(b"content-security-policy", policy), (b"referrer-policy", b"no-referrer")]

    @functools.cached_property
    def packed(self) -> bytes:
        """The content, gzipped."""
        return (_ASSETS / f"{self._name}.gz").read_bytes() if self._given is None else self._given

    @functools.cached_property
    def _plain(self) -> bytes:
        return gzip.decompress(self.packed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        asked = dict(scope["headers"])
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")])
        elif self._tag in [tag.strip() for tag in asked.get(b"if-none-match", b"").split(b",")]:
            await _answer(send, 304, self._headers)
        else:
            packed = accepts(asked.get(b"accept-encoding", b""), b"gzip")
            body = self.packed if packed else self._plain
            encoding = [(b"content-encoding", b"gzip")] if packed else []
            headers = [*self._headers, *encoding, (b"content-length", b"%d" % len(body))]
            await _answer(send, 200, headers, b"" if scope["method"] == "HEAD" else body)


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def accepts(header: bytes, wanted: bytes) -> bool:
    """Does an `Accept` or `Accept-Encoding` name this one, and not with a weight of 0?"""
    return weight(header, wanted) > 0


def weight(header: bytes, *names: bytes) -> float:
    """What an `Accept` or `Accept-Encoding` gives the first of these names that is in it: 0 to 1. None is: 0."""
    weights: dict[bytes, float] = {}
    for item in header.lower().split(b","):
        name, *params = [part.strip() for part in item.split(b";")]
        if name not in weights:
            found = [float(param[2:]) for param in params if _WEIGHT.fullmatch(param)]
            weights[name] = found[0] if found else 1.0
    return next((weights[name] for name in names if name in weights), 0.0)


def from_browser(scope: Scope) -> bool:
    """Is this a browser that goes to an address, and wants a page there?"""
    return scope["method"] in ("GET", "HEAD") and accepts(dict(scope["headers"]).get(b"accept", b""), b"text/html")


def make_docs(openapi: bytes) -> dict[str, ASGIApp]:
    """Applications by their paths: this OpenAPI document, the page that shows it, and what the page loads."""
    return {OPENAPI: _ours("openapi.json", openapi), DOCS: _page("docs.html"), **_assets("docs.", "swagger-ui.")}


def graphiql_page() -> ASGIApp:
    """GraphiQL, to be shown at GraphQL's own address."""
    return _page("graphiql.html")


def graphiql_assets() -> dict[str, ASGIApp]:
    """Applications by their paths: what GraphiQL's page loads."""
    return _assets("graphiql.", "react.", "react-dom.")


def _assets(*prefixes: str) -> dict[str, ASGIApp]:
    return {f"/{_address(name)}": _asset(name) for name in _digests() if name.startswith(prefixes)}


def _asset(name: str) -> File:
    return File(name, _packed(_read(name)) if name in _OWN else None, digest=_digests()[name], caching=_FOREVER)


def _page(name: str) -> File:
    """A page of ours, with the addresses of assets where it has their names in braces."""
    return _ours(name, re.sub(r"\{([\w.-]+)\}", lambda found: _address(found[1]), _read(name).decode()).encode())


def _ours(name: str, content: bytes) -> File:
    return File(name, _packed(content), digest=_digest(content), caching=_ASK_AGAIN)


def _address(name: str) -> str:
    """Relative, so that a proxy may put a prefix before it all."""
    stem, _, kind = name.rpartition(".")
    return f"assets/{stem}.{_digests()[name][:16]}.{kind}"


@functools.cache
def _digests() -> Mapping[str, str]:
    """The SHA-256 of each asset."""
    packages: list[dict[str, Any]] = msgspec.json.decode(_read("manifest.json"))
    theirs = {name: rule["sha256"] for package in packages for name, rule in package["files"].items()}
    return theirs | {name: _digest(_read(name)) for name in _OWN}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(name: str) -> bytes:
    return (_ASSETS / name).read_bytes()


def _packed(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)
