"""The pages for browsers in a real one: they work, and nothing that they ask for lies elsewhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from judges.chromium import Page, chromium
from judges.programs import KEY
from llmg.boot.serve import listen
from llmg.doors.graphql.app import make_graphql
from llmg.doors.http.pages import graphiql_assets, make_docs
from llmg.doors.http.server import HttpServer
from llmg.doors.rest.app import Routes, make_door
from llmg.providers.echo import Echo
from llmg.wire.openapi.own import own
from support.doors import admission, some_models

pytestmark = pytest.mark.judge

REFUSED = "401 (Unauthorized)"  # GraphiQL asks for the schema before it is told a key
INPUT = {"model": "a", "messages": [{"role": "USER", "parts": [{"text": {"text": "Good morning"}}]}]}
ANSWER = "document.querySelector('.result-window').innerText"
SUBSCRIPTION = "subscription ($input: ChatInput!) { chatCompletion(input: $input) { events { __typename } } }"


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """The URL of a server of the pages, and of GraphQL for who has the key."""
    graphql = make_graphql(pipeline=Echo(), models=some_models(), admission=admission({"judges": KEY}), graphiql=True)
    pages = {**make_docs(json.dumps(own()).encode()), **graphiql_assets(), "/graphql": graphql}
    server = HttpServer(
        make_door(Routes(pages, sockets={"/graphql": graphql})),
        max_headers=1 << 16,
        header_timeout=10.0,
        body_timeout=10.0,
        keep_alive=10.0,
        backlog=16,
        access_log=False,
        draining=lambda: False,
    )
    listener = listen(("127.0.0.1", 0), 16)
    await server.start(listener)
    try:
        yield "http://{}:{}".format(*listener.getsockname())
    finally:
        await server.drain(0)


@asynccontextmanager
async def opened(path: str, directory: Path, complaints: str = "nothing") -> AsyncIterator[Page]:
    """The page in a browser. At the end all that it asked for must have been of its own origin, and all errors in its
    console must have `complaints` in them.
    """
    async with serving() as origin, chromium(directory / "profile") as browser:
        page = await browser.page()
        await page.go(f"{origin}{path}")
        yield page
        await page.screenshot(directory / "page.png")
    own_ones = (f"{origin}/", f"{origin.replace('http', 'ws', 1)}/", "data:")
    assert [url for url in page.requests if not url.startswith(own_ones)] == []
    assert len(page.requests) > 4
    assert [complaint for complaint in page.complaints if complaints not in complaint] == []


async def show_key(page: Page) -> None:
    """Puts it into GraphiQL's headers."""
    await page.click("[data-name=headers]")
    await page.click(".graphiql-editor-tool .graphiql-editor:not(.hidden) .CodeMirror")
    await page.type(json.dumps({"Authorization": f"Bearer {KEY}"}))


async def test_the_docs(tmp_path: Path) -> None:
    async with opened("/docs", tmp_path) as page:
        await page.until("document.querySelectorAll('.opblock').length >= 5")
        assert await page.evaluate("document.querySelector('.info .title').innerText.includes('llmg')")
        await page.click("#operations-ChatService-CreateChatCompletion .opblock-summary-control")
        await page.until("document.querySelector('.opblock.is-open .try-out__btn') !== null")
        shown = await page.evaluate("document.querySelector('.opblock.is-open').innerText")
    for words in ("/api/v1/chat/completions", "Answers when the answer is complete", '"toolChoice"'):
        assert words in shown


async def test_graphiql_asks(tmp_path: Path) -> None:
    async with opened("/graphql", tmp_path, complaints=REFUSED) as page:
        await show_key(page)
        await page.click(".graphiql-execute-button")
        await page.until(f"{ANSWER}.includes('operations')")
        assert '"id": "a"' in await page.evaluate(ANSWER)


async def test_graphiql_subscribes(tmp_path: Path) -> None:
    query = urlencode({"query": SUBSCRIPTION, "variables": json.dumps({"input": INPUT})})
    async with opened(f"/graphql?{query}", tmp_path, complaints=REFUSED) as page:
        await show_key(page)
        await page.click(".graphiql-execute-button")
        await page.until(f"{ANSWER}.includes('__typename')")  # it shows the last payload of a stream
    assert len([url for url in page.requests if url.startswith("ws:")]) == 1


async def test_graphiql_has_the_schema_and_dialogs(tmp_path: Path) -> None:
    async with opened("/graphql", tmp_path, complaints=REFUSED) as page:
        await show_key(page)
        await page.click('[aria-label="Re-fetch GraphQL schema"]')
        await page.click('[aria-label="Show Documentation Explorer"]')
        await page.until("document.querySelector('.graphiql-plugin')?.innerText.includes('Subscription')")
        await page.click('[aria-label="Open settings dialog"]')
        await page.until("document.querySelector('.graphiql-dialog') !== null")
