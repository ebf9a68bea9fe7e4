"""Clients that ask without end, half of them for streams, and what became of each request."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

STATUS_OK = 200
Body = dict[str, object]


@dataclass
class Counts:
    """What became of the requests that ended while this was counted."""

    requests: int = 0
    answered: int = 0
    """To their end."""
    failed_over: int = 0
    """Of these, by another target than the first that was asked, or after others had been asked, too."""
    attempts: int = 0
    """Targets that were asked for these."""
    waits: list[float] = field(default_factory=list)
    """Seconds to the first word, of those that were streams."""
    cut: int = 0
    """Streams that had begun, and ended with an error that says what happened."""
    cut_unclear: int = 0
    """Streams that had begun, and ended in any other way."""
    refused: int = 0
    """Requests that got an error instead of the beginning of an answer."""
    routes: dict[str, int] = field(default_factory=dict)
    """Answers by target."""
    errors: dict[str, int] = field(default_factory=dict)
    """By code."""


class Load:
    """So many clients at a time. `counts` can be exchanged while they are at work."""

    def __init__(self, url: str, clients: int) -> None:
        self._url = url
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = asyncio.Condition()
        self._broken: Exception | None = None
        self.counts = Counts()

    async def __aenter__(self) -> "Load":
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._tasks = [asyncio.create_task(self._client(stream=place % 2 == 1)) for place in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def start_anew(self) -> Counts:
        """Counts from zero."""
        self.counts = Counts()
        return self.counts

    async def until(self, seen: Callable[[Counts], bool], patience: float) -> bool:
        """Waits until the counts are so; False: they were not within `patience` seconds."""
        try:
            async with asyncio.timeout(patience), self._ended:
                await self._ended.wait_for(lambda: seen(self.counts) or self._broken is not None)
        except TimeoutError:
            return False
        if self._broken is not None:
            raise self._broken
        return True

    async def _client(self, *, stream: bool) -> None:
        asked = {"model": "m", "messages": [{"role": "user", "content": "How is it?"}], "stream": stream}
        while True:
            try:
                await self._ask(asked)
            except Exception as error:  # noqa: BLE001 - what we did not expect ends the run, by `until`
                self._broken = error
            self.counts.requests += 1  # it counts where it ends
            async with self._ended:
                self._ended.notify_all()

    async def _ask(self, asked: Body) -> None:
        asked_at = time.monotonic()
        async with self._session.post(self._url, json=asked) as response:
            if response.status != STATUS_OK:
                self.counts.refused += 1
                _add(self.counts.errors, (await response.json())["error"]["code"])
            elif not asked["stream"]:
                await response.json()
                self._answered(response)
            else:
                await self._follow(response, asked_at)

    async def _follow(self, response: aiohttp.ClientResponse, asked_at: float) -> None:
        begun, last = False, ""
        try:
            async for line in response.content:
                if line.startswith(b"data: "):
                    last = line[6:].decode().strip()
                    if not begun and '"content"' in last:
                        begun = True
                        self.counts.waits.append(time.monotonic() - asked_at)
        except aiohttp.ClientError:
            self.counts.cut_unclear += 1
            return
        if last == "[DONE]":
            self._answered(response)
            return
        error = json.loads(last).get("error") if last else None
        if not begun:
            self.counts.refused += 1
        elif error and error.get("message") and error.get("code"):
            self.counts.cut += 1
            _add(self.counts.errors, error["code"])
        else:
            self.counts.cut_unclear += 1

    def _answered(self, response: aiohttp.ClientResponse) -> None:
        attempts = int(response.headers.get("x-llmg-attempts", "1"))
        self.counts.answered += 1
        self.counts.attempts += attempts
        self.counts.failed_over += attempts > 1
        _add(self.counts.routes, response.headers["x-llmg-route"].partition("/")[0])


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
