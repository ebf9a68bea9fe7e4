"""The client: one connection to a gateway, any number of calls at the same time."""

from __future__ import annotations

import math
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Literal, TypeVar, Unpack

from betterproto2.grpclib import ServiceStub
from grpclib.const import Cardinality

from llmg.client import requests
from llmg.client import types as t
from llmg.client.answers import Assembly, Completion, Embeddings, events
from llmg.client.errors import LlmgError, unavailable
from llmg.client.requests import ChatFields, EmbeddingInputs, Messages
from llmg.client.transport import Call, Channel, In, Metadata, Method, Out
from llmg.client.way import Way, way

S = TypeVar("S", bound=ServiceStub)

_V1: Final = "/llmg.gatewayapi.v1."
CREATE_CHAT_COMPLETION: Final = Method(
    _V1 + "ChatService/CreateChatCompletion", t.CreateChatCompletionRequest, t.CreateChatCompletionResponse
)
CREATE_CHAT_COMPLETION_STREAM: Final = Method(
    _V1 + "ChatService/CreateChatCompletionStream",
    t.CreateChatCompletionStreamRequest,
    t.CreateChatCompletionStreamResponse,
    Cardinality.UNARY_STREAM,
)
CREATE_EMBEDDINGS: Final = Method(
    _V1 + "EmbeddingService/CreateEmbeddings", t.CreateEmbeddingsRequest, t.CreateEmbeddingsResponse
)
LIST_MODELS: Final = Method(_V1 + "ModelService/ListModels", t.ListModelsRequest, t.ListModelsResponse)
EXPLAIN_ROUTE: Final = Method(_V1 + "RoutingService/ExplainRoute", t.ExplainRouteRequest, t.ExplainRouteResponse)
GET_MODEL: Final = Method(_V1 + "ModelService/GetModel", t.GetModelRequest, t.GetModelResponse)


class Client:
    """A gateway's client: `async with Client() as client`, or `await client.close()` at the end.

    It connects when it is first used, and again when the connection was lost. Every method raises `LlmgError`.
    `timeout`: seconds that a call may take in all (a stream: to its end); None: any time. A call may have its own
    (`math.inf`: any time), and `call_metadata` of its own: `{"x-request-id": ...}`, say.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8081",
        *,
        api_key: str | None = None,
        tls: Literal[True] | ssl.SSLContext | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        """`target` is HOST:PORT. `tls`: True trusts what the system trusts; a context of your own is told to speak
        HTTP/2. `metadata` goes out with each call. Raises ValueError for a target or key that can't be one."""
        self._host, self._port = _address(target)
        self._tls = _context(tls)
        self._timeout = timeout
        self._metadata: dict[str, str | bytes] = dict(metadata or {})
        if api_key is not None:
            self._metadata["authorization"] = f"Bearer {_key(api_key)}"
        self._made: Channel | None = None
        self._closed = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls that are under way, and the connection."""
        self._closed = True
        if self._made is not None:
            await self._made.aclose()

    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        timeout: float | None = None,
        call_metadata: Metadata | None = None,
        **fields: Unpack[ChatFields],
    ) -> Completion:
        """The whole answer. `messages`: a text, or a list of dictionaries in OpenAI's shape or of `types.Message`."""
        request = t.CreateChatCompletionRequest(chat=requests.chat(model, messages, fields))
        answer, went = await self._ask(CREATE_CHAT_COMPLETION, request, timeout, call_metadata)
        return Completion(answer.completion or t.ChatCompletion(), went)

    def stream(
        self,
        model: str,
        messages: Messages,
        *,
        timeout: float | None = None,
        call_metadata: Metadata | None = None,
        **fields: Unpack[ChatFields],
    ) -> ChatStream:
        """The answer as it is made: `async with client.stream(...) as stream`. Arguments as for `chat`."""
        request = t.CreateChatCompletionStreamRequest(chat=requests.chat(model, messages, fields))
        return ChatStream(self._call(CREATE_CHAT_COMPLETION_STREAM, timeout, call_metadata), request)

    async def embed(
        self,
        model: str,
        inputs: EmbeddingInputs,
        *,
        dimensions: int | None = None,
        user: str | None = None,
        timeout: float | None = None,
        call_metadata: Metadata | None = None,
    ) -> Embeddings:
        """A vector for each input. `inputs`: a text, or a list of texts or of their tokens."""
        request = requests.embeddings(model, inputs, dimensions, user)
        return Embeddings(*await self._ask(CREATE_EMBEDDINGS, request, timeout, call_metadata))

    async def explain(
        self,
        model: str,
        messages: Messages,
        *,
        level: str = "",
        timeout: float | None = None,
        call_metadata: Metadata | None = None,
        **fields: Unpack[ChatFields],
    ) -> t.ExplainRouteResponse:
        """Which targets would be asked now, in which order, and why not the others. Arguments as for `chat`. `level`:
        for administrators, the level of the catalog as whose clients would ask, such as `tenants/acme`."""
        request = t.ExplainRouteRequest(chat=requests.chat(model, messages, fields), level=level)
        answer, _ = await self._ask(EXPLAIN_ROUTE, request, timeout, call_metadata)
        return answer

    async def models(self, *, timeout: float | None = None, call_metadata: Metadata | None = None) -> list[t.Model]:
        """All models that have a name of their own, by name. `timeout` is for each page of them."""
        out: list[t.Model] = []
        asked = t.ListModelsRequest()
        while True:
            page, _ = await self._ask(LIST_MODELS, asked, timeout, call_metadata)
            out += page.models
            if not page.next_page_token:
                return out
            asked = t.ListModelsRequest(page_token=page.next_page_token)

    async def model(self, id: str, *, timeout: float | None = None, call_metadata: Metadata | None = None) -> t.Model:
        """The model of that name. Raises NotFoundError."""
        answer, _ = await self._ask(GET_MODEL, t.GetModelRequest(id=id), timeout, call_metadata)
        return answer.model or t.Model()

    def stub(self, service: type[S]) -> S:
        """One of the contract's services (`types.ChatServiceStub` ...) on this client's connection: raw messages in
        and out, the same errors. A stream of it is a generator: leave it by `contextlib.aclosing`."""
        return service(self._channel(), timeout=self._timeout, metadata=self._metadata)

    async def _ask(
        self, method: Method[In, Out], request: In, timeout: float | None, metadata: Metadata | None
    ) -> tuple[Out, Way]:
        async with self._call(method, timeout, metadata) as call:
            await call.send_message(request, end=True)
            answer = await call.recv_message()
        if answer is None:
            raise unavailable(f"no answer came from {self._host}:{self._port}")
        return answer, way(call.trailers)

    def _call(self, method: Method[In, Out], timeout: float | None, metadata: Metadata | None) -> Call[In, Out]:
        if timeout is None:
            timeout = self._timeout
        return self._channel().call(
            method, None if timeout == math.inf else timeout, {**self._metadata, **(metadata or {})}
        )

    def _channel(self) -> Channel:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._made is None:  # here, as it needs the event loop that is running
            self._made = Channel(self._host, self._port, tls=self._tls)
        return self._made


class ChatStream(AsyncIterator[t.Event]):
    """An answer as it is made. Leaving its `async with` ends the call at once, wherever it stands.

    It gives events; `text` gives words alone. `completion` is the answer as far as it has come.
    """

    def __init__(self, call: _StreamCall, request: t.CreateChatCompletionStreamRequest) -> None:
        self._call = call
        self._request = request
        self._assembly = Assembly()
        self._events: deque[t.Event] = deque()
        self._begun = False
        self._ended = False

    async def __aenter__(self) -> ChatStream:
        self._begun = True
        await self._call.__aenter__()
        try:
            await self._call.send_message(self._request, end=True)
        except BaseException:
            await self._call.leave()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the call, if it has not ended."""
        self._ended = True
        await self._call.leave()

    async def __anext__(self) -> t.Event:
        while not self._events:
            await self._read()
        event = self._events.popleft()
        self._assembly.feed(event)
        return event

    @property
    def text(self) -> AsyncIterator[str]:
        """What the first choice says, piece by piece: no thoughts, no tool calls."""
        return _Texts(self)

    @property
    def completion(self) -> Completion:
        """The answer as far as its events were read; whole when the stream is over."""
        return Completion(self._assembly.completion(), way(self._call.trailers))

    @property
    def usage(self) -> t.Usage | None:
        """What it cost so far, where that is known."""
        return self._assembly.usage

    @property
    def route(self) -> str | None:
        """The target that answered, PROVIDER/MODEL; None while the stream lasts."""
        return way(self._call.trailers).route

    @property
    def request_id(self) -> str | None:
        """What the gateway's log names the request; None while the stream lasts."""
        return way(self._call.trailers).request_id

    def kind(self, event: t.Delta | t.Annotated | t.Closed) -> t.PartKind:
        """What kind of part an event belongs to."""
        return self._assembly.kind(event.choice, event.part)

    async def get_final_completion(self) -> Completion:
        """Reads what is left; the whole answer."""
        async for _ in self:
            pass
        return self.completion

    async def _read(self) -> None:
        if not self._begun:
            raise RuntimeError("a stream is begun by `async with client.stream(...) as stream`")
        if self._ended:
            raise StopAsyncIteration
        try:
            message = await self._call.recv_message()
            if message is None:
                await self._call.recv_trailing_metadata()
        except LlmgError:
            self._ended = True
            raise
        if message is None:
            self._ended = True
            raise StopAsyncIteration
        self._events += events(message.events)


_StreamCall = Call[t.CreateChatCompletionStreamRequest, t.CreateChatCompletionStreamResponse]


class _Texts(AsyncIterator[str]):
    def __init__(self, stream: ChatStream) -> None:
        self._stream = stream

    async def __anext__(self) -> str:
        async for event in self._stream:
            if (
                isinstance(event, t.Delta)
                and event.choice == 0
                and event.text
                and self._stream.kind(event) == t.PartKind.TEXT
            ):
                return event.text
        raise StopAsyncIteration


def _address(target: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[^\[\]\s]+\]|[^:\s/]+):(\d{1,5})", target)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise ValueError(f"expected HOST:PORT, not {target!r}")
    return found[1].strip("[]"), int(found[2])


def _key(given: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", given):
        raise ValueError("an API key is of printable ASCII characters without spaces")
    return given


def _context(tls: Literal[True] | ssl.SSLContext | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.create_default_context() if tls is True else tls
    context.set_alpn_protocols(["h2"])
    return context
