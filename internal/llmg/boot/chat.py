"""`llmg chat`: a conversation in the terminal, through a running gateway, by the gateway's own OpenAI client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import msgspec
from msgspec import UNSET
from rich.console import Console

from llmg.boot.system import RandomIds, SystemClock
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Delta, Opened
from llmg.core.request import Chat, Message, Sampling, Text
from llmg.providers.http import Exchange, Origin, Transport
from llmg.providers.openai import OpenAI


class Conversation:
    """What was said so far, and to whom."""

    def __init__(
        self, url: str, model: str | None, system: str | None, temperature: float | None, max_tokens: int | None
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._sampling = Sampling(
            temperature=UNSET if temperature is None else temperature,
            max_tokens=UNSET if max_tokens is None else max_tokens,
        )
        self._messages = [Message(role="system", parts=(Text(system),))] if system else []
        self._clock, self._ids = SystemClock(), RandomIds()

    async def say(self, text: str) -> AsyncIterator[str]:
        """The answer to it, piece by piece. Raises Failure."""
        transport = Transport()
        try:
            await self._reach(transport)
            messages = [*self._messages, Message(role="user", parts=(Text(text),))]
            model = self._model = self._model or await self._first_model(transport)
            chat = Chat(model=model, messages=tuple(messages), sampling=self._sampling, stream=True)
            answer: list[str] = []
            async for piece in self._pieces(OpenAI(transport, Origin(self._url + "/v1")), chat):
                answer.append(piece)
                yield piece
            self._messages = [*messages, Message(role="assistant", parts=(Text("".join(answer)),))]
        finally:
            await transport.close()

    async def _pieces(self, provider: OpenAI, chat: Chat) -> AsyncIterator[str]:
        new = self._ids.new()
        context = Context(id=new, request_id=new, door="cli", created=int(self._clock.time()), trail=[])
        texts: set[tuple[int, int]] = set()
        async with provider.open(chat, context) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Opened) and event.kind == "text":
                        texts.add((event.choice, event.part))
                    elif (
                        isinstance(event, Delta) and (event.choice, event.part) in texts and isinstance(event.data, str)
                    ):
                        yield event.data

    async def _reach(self, transport: Transport) -> None:
        try:
            exchange = await self._get(transport, "/healthz")
        except Failure as failure:
            hint = "start one with `llmg serve`, or name another with --url"
            raise Failure(
                failure.kind, f"no gateway answers at {self._url}: {hint}", detail=failure.detail
            ) from failure
        exchange.close()

    async def _get(self, transport: Transport, path: str) -> Exchange:
        origin = Origin(self._url)
        return await transport.send(origin, origin.head("GET", path, {}))

    async def _first_model(self, transport: Transport) -> str:
        exchange = await self._get(transport, "/v1/models")
        try:
            listed = msgspec.json.decode(await exchange.read(1 << 24))
            return str(listed["data"][0]["id"])
        except (msgspec.MsgspecError, KeyError, IndexError, TypeError):
            raise Failure(Kind.MODEL_NOT_FOUND, f"{self._url} names no model") from None
        finally:
            exchange.close()


def run(conversation: Conversation, prompt: str | None) -> int:
    """One question, or a conversation. The exit code: 0, or 1 when the last answer failed."""
    console = Console(stderr=True)
    if prompt is not None:
        return _answer(conversation, prompt, console)
    code = 0
    while True:
        try:
            text = input("> ") if sys.stdin.isatty() else input()
        except (EOFError, KeyboardInterrupt):
            return code
        if text.strip():
            code = _answer(conversation, text, console)


def _answer(conversation: Conversation, text: str, console: Console) -> int:
    try:
        asyncio.run(_print(conversation, text))
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        return 130
    except Failure as failure:
        console.print(failure.message, style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


async def _print(conversation: Conversation, text: str) -> None:
    last = "\n"
    try:
        async for piece in conversation.say(text):
            sys.stdout.write(piece)
            sys.stdout.flush()
            last = piece[-1:] or last
    finally:
        if last != "\n":
            sys.stdout.write("\n")
