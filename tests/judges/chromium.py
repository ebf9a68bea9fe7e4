"""Chromium without a window, by the DevTools protocol: what a page asks for, shows and complains about."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from judges.programs import PATIENCE
from support.gateway import Log

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
    "--remote-debugging-port=0",
)


class Page:
    """A tab. `requests`: the URLs that were asked for; `complaints`: errors in its console, its policy's among them."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._browser = browser
        self._session = session

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        return await self._browser.call(method, self._session, **params)

    async def go(self, url: str) -> None:
        """To this address; does not wait for anything in it."""
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    async def evaluate(self, script: str) -> Any:
        """An expression's value; a promise's, when it has one."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """The expression's value, in JSON, as soon as it is a true one."""
        look = (
            f"const look = () => {{ const value = ({script}); value ? done(value) : setTimeout(look, 10); }}; look();"
        )
        return await self.evaluate(f"new Promise((done) => {{ {look} }})")

    async def click(self, selector: str) -> None:
        """In the middle of the first element of that selector, once there is one."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{element} !== null")
        await self.evaluate(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y, width, height = await self.evaluate(
            f"(({{x, y, width, height}}) => [x, y, width, height])({element}.getBoundingClientRect())"
        )
        where = {"x": x + width / 2, "y": y + height / 2, "button": "left", "clickCount": 1}
        await self.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        await self.call("Input.dispatchMouseEvent", type="mouseReleased", **where)

    async def type(self, text: str) -> None:
        """Into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def screenshot(self, file: Path) -> None:
        """As a PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(file.write_bytes, base64.b64decode(answer["data"]))

    def notice(self, method: str, params: dict[str, Any]) -> None:
        """An event of the protocol."""
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))


class Browser:
    """A connection to it."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command, and its result."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        command = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        await self._connection.send(json.dumps(command))
        async with asyncio.timeout(PATIENCE):
            return await answer

    async def page(self) -> Page:
        """A new, empty tab."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Network", "Log", "Runtime"):
            await page.call(f"{domain}.enable")
        return page

    async def listen(self) -> None:
        """To what it says, until it closes the connection."""
        async for text in self._connection:
            message = json.loads(text)
            waiting = self._waiting.pop(message.get("id", 0), None)
            if waiting is not None and "error" in message:
                waiting.set_exception(AssertionError(message["error"]))
            elif waiting is not None:
                waiting.set_result(message["result"])
            elif page := self._pages.get(message.get("sessionId", "")):
                page.notice(message["method"], message["params"])


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Browser]:
    """A browser of its own, with its profile in `directory`."""
    command = ["chromium", *FLAGS, f"--user-data-dir={directory}", "about:blank"]
    popen = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    log = Log(popen)
    try:
        line = await asyncio.to_thread(log.line, "DevTools listening on", PATIENCE)
        async with connect(line.rpartition(" ")[2].strip(), max_size=None) as connection:
            browser = Browser(connection)
            listening = asyncio.create_task(browser.listen())
            try:
                yield browser
            finally:
                listening.cancel()
    finally:
        popen.kill()
        popen.wait()
        log.close()
