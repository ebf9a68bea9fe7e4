"""`llmg chat`: a conversation in the terminal, through a running gateway: over HTTP, or by gRPC with `llmg.client`."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, TypeVar

import msgspec
from msgspec import UNSET
from rich.console import Console

from llmg.boot.system import RandomIds, SystemClock
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch, Delta, Opened
from llmg.core.explanation import Explanation
from llmg.core.request import Chat, Message, Role, Sampling, Text
from llmg.providers.http import Exchange, Origin, Transport
from llmg.providers.openai import OpenAI

if TYPE_CHECKING:
    from llmg.client import Client
    from llmg.client.requests import ChatFields

A = TypeVar("A")
Turn = tuple[Role, str]
_HINT: Final = "start one with `llmg serve`, or name another with {option}"


class Line(Protocol):
    """A line to a gateway. What it raises is a Failure."""

    name: str

    async def models(self) -> list[str]:
        """The names of its models; whether it answers at all."""
        ...

    def answer(self, model: str, said: Sequence[Turn]) -> AsyncIterator[str]:
        """What the model says to that, piece by piece."""
        ...

    async def explain(self, model: str, said: Sequence[Turn], level: str = "") -> Explanation:
        """Where that would go; `level`: for whose clients, by the name of their level in the catalog."""
        ...


Dial = Callable[[], AbstractAsyncContextManager[Line]]


class Conversation:
    """What was said so far, and to whom. Each question has a line of its own."""

    def __init__(self, dial: Dial, model: str | None, system: str | None) -> None:
        self._dial = dial
        self._model = model
        self._said: list[Turn] = [("system", system)] if system else []

    async def say(self, text: str) -> AsyncIterator[str]:
        """The answer to it, piece by piece. Raises Failure."""
        async with self._dial() as line:
            names = await line.models()
            if not (self._model or names):
                raise Failure(Kind.MODEL_NOT_FOUND, f"{line.name} names no model")
            model = self._model = self._model or names[0]
            said: list[Turn] = [*self._said, ("user", text)]
            answer: list[str] = []
            async for piece in line.answer(model, said):
                answer.append(piece)
                yield piece
            self._said = [*said, ("assistant", "".join(answer))]


def issuers(file: Path) -> ssl.SSLContext:
    """Trusts the certificates in `file` (PEM), and those that they issued; no others. Raises ValueError."""
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise ValueError(f"{file} holds no certificates in PEM") from None
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from None


def keyless(dial: Dial) -> Dial:
    """That line, which shows no API key: where one is needed, it says how to name it."""

    @asynccontextmanager
    async def dialled() -> AsyncIterator[Line]:
        try:
            async with dial() as line:
                yield line
        except Failure as failure:
            if failure.kind is not Kind.UNAUTHENTICATED:
                raise
            words = "the gateway needs an API key: name it with --api-key, or in LLMG_API_KEY"
            raise Failure(failure.kind, words) from failure

    return dialled


def over_http(
    url: str,
    api_key: str | None,
    temperature: float | None,
    max_tokens: int | None,
    trust: ssl.SSLContext | None = None,
) -> Dial:
    """By the gateway's own OpenAI client. `url` is http(s). `trust`: None is what the system trusts."""

    @asynccontextmanager
    async def dial() -> AsyncIterator[Line]:
        transport = Transport() if trust is None else _Trusting(trust)
        try:
            yield _Http(transport, url.rstrip("/").removesuffix("/v1"), api_key, sampling)
        finally:
            await transport.close()

    sampling = Sampling(
        temperature=UNSET if temperature is None else temperature,
        max_tokens=UNSET if max_tokens is None else max_tokens,
    )
    return dial


class _Trusting(Transport):
    """With issuers of one's own."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        super().__init__()
        self._trust = trust

    def _context(self) -> ssl.SSLContext:
        return self._trust


class _Http:
    def __init__(self, transport: Transport, url: str, api_key: str | None, sampling: Sampling) -> None:
        self.name = url
        self._transport = transport
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._provider = OpenAI(transport, Origin(url + "/v1"), api_key)
        self._sampling = sampling
        self._clock, self._ids = SystemClock(), RandomIds()

    async def models(self) -> list[str]:
        return _names(await self._ask("GET", "/v1/models"))

    async def explain(self, model: str, said: Sequence[Turn], level: str = "") -> Explanation:
        messages = [{"role": role, "content": text} for role, text in said]
        asked = msgspec.json.encode({"model": model, "messages": messages, **({"level": level} if level else {})})
        try:
            return _explanation(await self._ask("POST", "/v1/routes/explain", asked))
        except msgspec.MsgspecError:
            raise Failure(Kind.UPSTREAM_PROTOCOL, f"{self.name} explains no routes: it may be no gateway") from None

    async def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of a good answer."""
        exchange = await self._send(method, path, body)
        try:
            answer = await exchange.read(1 << 24)
            return answer if exchange.status == 200 else _refused(exchange.status, answer)
        finally:
            exchange.close()

    async def _send(self, method: str, path: str, body: bytes) -> Exchange:
        origin = Origin(self.name)
        headers = {**self._headers, **({"Content-Type": "application/json"} if body else {})}
        try:
            return await self._transport.send(origin, origin.head(method, path, headers), body)
        except Failure as failure:
            otherwise = _STRANGE.get(failure.kind, failure.message)
            raise unreached(self.name, failure.__cause__, otherwise) from failure

    async def answer(self, model: str, said: Sequence[Turn]) -> AsyncIterator[str]:
        messages = tuple(Message(role=role, parts=(Text(text),)) for role, text in said)
        chat = Chat(model=model, messages=messages, sampling=self._sampling, stream=True)
        new = self._ids.new()
        context = Context(id=new, request_id=new, door="cli", created=int(self._clock.time()), trail=[])
        try:
            async with self._provider.open(chat, context) as batches:
                async for piece in _texts(batches):
                    yield piece
        except Failure as failure:
            raise _in_its_words(failure) from failure


async def _texts(batches: AsyncIterator[Batch]) -> AsyncIterator[str]:
    texts: set[tuple[int, int]] = set()
    async for batch in batches:
        for event in batch:
            if isinstance(event, Opened) and event.kind == "text":
                texts.add((event.choice, event.part))
            elif isinstance(event, Delta) and (event.choice, event.part) in texts and isinstance(event.data, str):
                yield event.data


_explanation: Final = msgspec.json.Decoder(Explanation).decode


def _names(body: bytes) -> list[str]:
    try:
        return [str(model["id"]) for model in msgspec.json.decode(body)["data"]]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return []  # whoever this is, it names no model


def _refused(status: int, body: bytes) -> NoReturn:
    said = _message(body) or f"it answers with HTTP {status}: it may be no gateway"
    raise Failure(Kind.UNAUTHENTICATED if status == 401 else Kind.UPSTREAM_ERROR, said)


def _in_its_words(failure: Failure) -> Failure:
    """As the gateway said it. What an upstream says is for the log alone: HTTP STATUS: BODY."""
    said = _message((failure.detail or "").partition(": ")[2].encode())
    return failure if said is None else Failure(failure.kind, said, param=failure.param)


def _message(body: bytes) -> str | None:
    """Of an error in OpenAI's shape."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return None


_STRANGE: Final = {
    Kind.UPSTREAM_UNAVAILABLE: "it hung up before it answered; it may want https://, or --grpc",
    Kind.UPSTREAM_PROTOCOL: "its answer is no HTTP; it may want --grpc",
}
_REASONS: Final[Sequence[tuple[type[OSError], str]]] = (
    (ssl.SSLCertVerificationError, "its certificate is not trusted ({}); --ca names a file with who issued it"),
    (ssl.SSLError, "no TLS connection can be made ({}); it may want http://"),
    (socket.gaierror, "its name can't be resolved ({})"),
    (ConnectionRefusedError, _HINT),
    (TimeoutError, "connecting took too long; " + _HINT),
    (OSError, "{}; " + _HINT),
)


def unreached(name: str, error: BaseException | None, otherwise: str, option: str = "--url") -> Failure:
    """Why no gateway answers, by the error of the operating system or of TLS; `otherwise`: there is none.

    `option` names another gateway.
    """
    reason = next((words for kind, words in _REASONS if isinstance(error, kind)), None)
    said = otherwise if reason is None else reason.format(_own_words(error), option=option)
    return Failure(Kind.UPSTREAM_UNAVAILABLE, f"no gateway answers at {name}: {said}")


def _own_words(error: BaseException | None) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def by_grpc(
    url: str,
    api_key: str | None,
    temperature: float | None,
    max_tokens: int | None,
    trust: ssl.SSLContext | None = None,
) -> Dial:
    """By llmg's own client. `url` is http(s)://HOST:PORT; `trust`: None is what the system trusts. Raises ValueError
    for a URL that holds more."""
    from llmg.client import Client, LlmgError

    scheme, _, target = url.partition("://")

    @asynccontextmanager
    async def dial() -> AsyncIterator[Line]:
        async with client() as made:
            try:
                yield _Grpc(made, target, {"temperature": temperature, "max_tokens": max_tokens})
            except LlmgError as error:
                raise Failure(_kind(error.kind), error.message) from error

    def client() -> Client:
        return Client(target, api_key=api_key, tls=(trust or True) if scheme.lower() == "https" else None)

    client()  # says now whether it can be made
    return dial


class _Grpc:
    def __init__(self, client: Client, target: str, fields: ChatFields) -> None:
        self.name = target
        self._client = client
        self._fields = fields

    async def models(self) -> list[str]:
        return [model.id for model in await self._reached(self._client.models())]

    async def _reached(self, answer: Awaitable[A]) -> A:
        from llmg.client import UnavailableError

        try:
            return await answer
        except UnavailableError as error:
            if error.kind in set(Kind):
                raise  # a gateway says so
            otherwise = f"{error.message}; it may want https://, or no --grpc"
            raise unreached(self.name, error.__cause__, otherwise) from error

    async def explain(self, model: str, said: Sequence[Turn], level: str = "") -> Explanation:
        from llmg.gatewayapi.v1.routing_pb2 import ExplainRouteResponse
        from llmg.wire.explanation import decode_explanation

        messages = [{"role": role, "content": text} for role, text in said]
        answer = await self._reached(self._client.explain(model, messages, level=level))
        return decode_explanation(ExplainRouteResponse.FromString(bytes(answer)))

    async def answer(self, model: str, said: Sequence[Turn]) -> AsyncIterator[str]:
        messages = [{"role": role, "content": text} for role, text in said]
        async with self._client.stream(model, messages, **self._fields) as stream:
            async for piece in stream.text:
                yield piece


def _kind(name: str) -> Kind:
    return Kind(name) if name in set(Kind) else Kind.UPSTREAM_UNAVAILABLE


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
