"""The pages for browsers: what is served, to whom, how long it may be kept, and that it is what it should be."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from graph.serving import serving
from llmg.doors.http.pages import accepts, graphiql_assets, graphiql_page, make_docs, weight
from support.http import Response

ASSETS = files("llmg.doors.http") / "assets"
MANIFEST: list[dict[str, Any]] = json.loads((ASSETS / "manifest.json").read_text())
DOCUMENT = b'{"openapi":"3.1.0"}'
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


async def ask(app: ASGIApp, method: str = "GET", **headers: str) -> Response:
    """One request; underscores in headers' names stand for dashes."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("there is no body to be read")

    async def send(message: Message) -> None:
        sent.append(dict(message))

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": method, "path": "/", "headers": named}, receive, send)
    start, *bodies = sent
    got = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(got) == len(start["headers"]), "a header came twice"
    return Response(start["status"], got, b"".join(body["body"] for body in bodies))


def apps() -> dict[str, ASGIApp]:
    """All of them."""
    return {**make_docs(DOCUMENT), **graphiql_assets(), "/graphql": graphiql_page()}


PAGES = ["/docs", "/graphql"]


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_only_what_is_here(path: str) -> None:
    page = await ask(apps()[path])
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())
    assert [f"/{url}" for url in loaded if url != "data:,"] == [f"/{url}" for url in loaded if f"/{url}" in apps()]
    assert len(loaded) >= 4
    assert "{" not in page.body.decode(), "a name was not replaced"


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_allows_no_script_but_ours(path: str) -> None:
    page = await ask(apps()[path])
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"
    body = page.body.decode()
    assert re.findall(r"<script>|<style|javascript:| on\w+=", body) == []


async def test_the_docs_ask_for_the_document() -> None:
    served = make_docs(DOCUMENT)
    start = next(app for path, app in served.items() if path.startswith("/assets/docs.start."))
    assert b'url: "openapi.json"' in (await ask(start)).body
    document = await ask(served["/openapi.json"])
    assert (document.body, document.headers["content-type"]) == (DOCUMENT, "application/json")


async def test_assets_may_be_kept_and_pages_not() -> None:
    for path, app in apps().items():
        caching = (await ask(app)).headers["cache-control"]
        assert caching == ("public, max-age=31536000, immutable" if path.startswith("/assets/") else "no-cache"), path


@pytest.mark.parametrize("path", ["/docs", "/graphql", "/openapi.json", *graphiql_assets()])
async def test_what_a_browser_has_is_not_sent_again(path: str) -> None:
    app = apps()[path]
    first = await ask(app)
    again = await ask(app, if_none_match=f'"other", {first.headers["etag"]}')
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (await ask(app, if_none_match='"other"')).status == 200


@pytest.mark.parametrize("path", list(apps()))
async def test_compressed_where_that_is_accepted(path: str) -> None:
    app = apps()[path]
    plain, packed = await ask(app), await ask(app, accept_encoding="br, GZIP;q=0.5")
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    for answer in (plain, packed):
        assert int(answer.headers["content-length"]) == len(answer.body) > 0
        assert "accept-encoding" in answer.headers["vary"]


async def test_methods() -> None:
    app = apps()["/docs"]
    head, whole = await ask(app, "HEAD"), await ask(app)
    assert (head.status, head.body, head.headers) == (200, b"", whole.headers)
    refused = await ask(app, "POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_addresses_are_those_of_the_content() -> None:
    for path, app in {**make_docs(DOCUMENT), **graphiql_assets()}.items():
        if path.startswith("/assets/"):
            digest = hashlib.sha256((await ask(app)).body).hexdigest()
            assert path.split(".")[-2] == digest[:16], path


def test_the_assets_are_those_of_the_manifest() -> None:
    for package in MANIFEST:
        for name, rule in package["files"].items():
            assert hashlib.sha256(gzip.decompress((ASSETS / f"{name}.gz").read_bytes())).hexdigest() == rule["sha256"]
        for text in package["texts"]:
            assert len((ASSETS / f"{package['name']}.{text.removesuffix('.txt')}.txt").read_text()) > 50
        assert package["integrity"].startswith("sha512-")


def test_nothing_else_lies_about() -> None:
    theirs = {f"{name}.gz" for package in MANIFEST for name in package["files"]}
    texts = {f"{package['name']}.{text.removesuffix('.txt')}.txt" for package in MANIFEST for text in package["texts"]}
    ours = {"docs.html", "docs.start.js", "graphiql.html", "graphiql.start.css", "graphiql.start.js", "manifest.json"}
    assert {file.name for file in ASSETS.iterdir()} == theirs | texts | ours


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_no_burden(path: str) -> None:
    """What a browser loads the first time, in bytes on the wire."""
    page = await ask(apps()[path])
    loaded = [f"/{url}" for url in re.findall(r'(?:src|href)="(assets/[^"]*)"', page.body.decode())]
    sizes = [len((await ask(apps()[url], accept_encoding="gzip")).body) for url in loaded]
    assert sum(sizes) < 512 << 10


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"text/html", True),
        (BROWSER.encode(), True),
        (b"application/json, TEXT/HTML;level=1", True),
        (b"text/html;q=0", False),
        (b"text/html;q=0.000", False),
        (b"text/html;q=0.1", True),
        (b"*/*", False),
        (b"", False),
        (b"text/html5", False),
    ],
)
def test_accepts(header: bytes, expected: bool) -> None:
    assert accepts(header, b"text/html") is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"a/b", 1),
        (b"*/*;q=0.1, A/B;x=1;Q=0.25", 0.25),
        (b"a/b;q=0.5, a/b", 0.5),
        (b"*/*;q=0.3", 0.3),
        (b"a/b;q=0, */*", 0),
        (b"a/b;q=1.000", 1),
        (b"a/b;q=.5", 1),
        (b"c/d", 0),
        (b"", 0),
    ],
)
def test_weight(header: bytes, expected: float) -> None:
    assert weight(header, b"a/b", b"*/*") == expected


# --- GraphiQL at GraphQL's own address -----------------------------------------------------------------------------


async def test_a_browser_gets_graphiql() -> None:
    async with serving(graphiql=True) as door:
        page = await door.raw("GET", "/graphql", accept=BROWSER)
        with_query = await door.raw("GET", "/graphql?query={models{id}}", accept=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["vary"] == "accept, accept-encoding"
    assert page.body == with_query.body, "what it asks is the script's business"


async def test_others_do_not() -> None:
    async with serving(graphiql=True) as door:
        for accept in ("*/*", "application/json", "application/graphql-response+json, application/json;q=0.9"):
            answer = await door.raw("GET", "/graphql?query={models{id}}", accept=accept)
            assert answer.json() == {"data": {"models": [{"id": "m"}]}}
        posted = await door.post({"query": "{ models { id } }"}, accept=BROWSER)
        assert posted.json() == {"data": {"models": [{"id": "m"}]}}


async def test_where_it_is_off_nobody_does() -> None:
    async with serving() as door:
        answer = await door.raw("GET", "/graphql", accept=BROWSER)
    assert answer.status == 400
    assert answer.headers["content-type"].startswith("application/json")
