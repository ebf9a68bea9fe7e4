"""The example page in a real browser: it streams tokens from the WebSocket, and asks for nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

from judges.chromium import Page, chromium
from judges.programs import KEY
from llmg.testing.scripted import Gate, Scripted, Step, saying
from support.sockets import serving, websocket_door

pytestmark = pytest.mark.judge

PAGE = Path(__file__).parents[2] / "docs" / "examples" / "stream.html"
ANSWER = "document.getElementById('answer').textContent"
STATE = "document.getElementById('state').textContent"


@asynccontextmanager
async def opened(steps: Sequence[Step], directory: Path, key: str = KEY) -> AsyncIterator[tuple[Page, Scripted]]:
    """The page, of another origin than the door; it has the key, and has not yet asked."""
    provider = Scripted(steps)
    files = Starlette(routes=[Route("/", lambda _: FileResponse(PAGE))])
    async with (
        websocket_door(provider, keys={"judges": KEY}) as door,
        serving(files) as site,
        chromium(directory / "profile") as browser,
    ):
        page = await browser.page()
        origin = "http://{}:{}".format(*site.address)
        await page.go(f"{origin}/?url={quote(door.url())}")
        await page.until(f"document.readyState === 'complete' && {json.dumps(origin)} === location.origin")
        await page.click("#key")
        await page.type(key)
        await page.click("#ask")
        yield page, provider
        assert [url for url in page.requests if not url.startswith((origin, door.url()))] == []
        assert [complaint for complaint in page.complaints if "favicon" not in complaint] == []


async def test_it_shows_tokens_as_they_come(tmp_path: Path) -> None:
    gate = Gate()
    async with opened([*saying("Good", " day")[:2], gate, *saying(" morning")[1:]], tmp_path) as (page, provider):
        await page.until(f"{ANSWER} === 'Good'")
        assert await page.evaluate(STATE) == ""
        gate.open()
        await page.until(f"{STATE}.startsWith('done')")
        assert await page.evaluate(ANSWER) == "Good morning"
    assert provider.calls[0].context.principal.key_id == "judges"


async def test_it_stops(tmp_path: Path) -> None:
    gate = Gate()
    async with opened([*saying("Good")[:2], gate], tmp_path) as (page, provider):
        await page.until(f"{ANSWER} === 'Good'")
        await page.click("#stop")
        await page.until(f"{STATE}.startsWith('cancelled')")
        assert provider.calls[0].exits == 1


async def test_it_says_why_not(tmp_path: Path) -> None:
    async with opened(saying("Good"), tmp_path, key="wrong") as (page, provider):
        await page.until(f"{STATE}.startsWith('closed: 4401')")
        assert provider.calls == []
