"""`llmg.v1`, the gateway's own protocol over WebSocket: JSON in text frames, for many requests over one socket.

A client greets (`init`), starts requests under ids of its own, may cancel them, may ping. The server tells of each
request its events, in the grammar of `core/events.py` and a frame for each read of the upstream, and then, once, that
it is `done` or why not (`error`). The structs below are the frames as they stand on the wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import IntEnum
from typing import Annotated as Typed
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import replace

from llmg.core import events, way
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, invalid
from llmg.core.explanation import Explanation as CoreExplanation
from llmg.core.explanation import Stage
from llmg.core.request import Chat, Embed
from llmg.core.usage import Usage as CoreUsage
from llmg.wire.openai.embeddings import decode_embed, floats, packed
from llmg.wire.openai.fields import NULL, refused
from llmg.wire.openai.requests import decode_chat

SUBPROTOCOL: Final = "llmg.v1"


class Close(IntEnum):
    """How a socket ends. Codes below 4000 are RFC 6455's (7.4.1); ours are those that GraphQL's protocol made known."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    BINARY = 1003
    NOT_UTF8 = 1007
    TOO_LARGE = 1009
    INTERNAL = 1011
    NOT_JSON = 4400
    UNAUTHORIZED = 4401
    SUBPROTOCOL = 4406
    INIT_TIMEOUT = 4408


# The one table of close codes: what each tells.
CLOSES: Final[dict[Close, str]] = {
    Close.NORMAL: "The client closed the socket.",
    # Not 1012 (service restart), which is in use, too: it promises that the gateway comes back, which it can't know;
    # every client knows 1001.
    Close.GOING_AWAY: "The gateway stops. Connect again; another one may be there already.",
    Close.PROTOCOL_ERROR: "A frame breaks the rules of WebSocket.",
    Close.BINARY: "A binary frame: all frames are text.",
    Close.NOT_UTF8: "A text frame that is not UTF-8.",
    Close.TOO_LARGE: "A frame is larger than `max_message`, which `ready` names.",
    Close.INTERNAL: "The gateway failed, or the client did not answer its pings.",
    Close.NOT_JSON: "A frame is not JSON.",
    Close.UNAUTHORIZED: "A key is needed, and none or a wrong one was shown.",
    Close.SUBPROTOCOL: "The client offers subprotocols, and `llmg.v1` is not among them.",
    Close.INIT_TIMEOUT: "A key is needed, and no `init` came in time.",
}

# --- what clients send ---------------------------------------------------------------------------------------------

Id = Typed[str, Meta(min_length=1, max_length=128)]
Operation = Literal["chat.completions", "embeddings"]


class Init(Struct, frozen=True, tag="init", forbid_unknown_fields=True):
    """The greeting. `key`: an API key, for those who could not show it in a header, as browsers can't."""

    key: str | None = None


class Start(Struct, frozen=True, tag="start", forbid_unknown_fields=True):
    """A request, in the shape of OpenAI's body for the operation. `id` is the client's own name for it.

    `timeout`: seconds within which it is to be answered to its end.
    """

    id: Id
    request: Raw
    operation: Operation = "chat.completions"
    timeout: Typed[float, Meta(gt=0)] | None = None


class Explain(Struct, frozen=True, tag="explain", forbid_unknown_fields=True):
    """Where would this request go? As in `start`, but answered by one `explanation`, or an `error`. Nobody is asked.
    Limits count it as the request, but without tokens.

    `level`: for administrators, the level of the catalog as whose clients would ask, such as `tenants/acme`.
    """

    id: Id
    request: Raw
    operation: Operation = "chat.completions"
    level: str | None = None


class Cancel(Struct, frozen=True, tag="cancel", forbid_unknown_fields=True):
    """The request is to end. Without effect when it is over."""

    id: Id


class Ping(Struct, frozen=True, tag="ping", forbid_unknown_fields=True):
    """Is anybody there?"""


ClientFrame = Init | Start | Explain | Cancel | Ping

# --- what the server sends -----------------------------------------------------------------------------------------


class Ready(Struct, frozen=True, tag="ready"):
    """The answer to `init`. `max_message` in bytes; `max_requests` at once."""

    max_message: int
    max_requests: int


class Pong(Struct, frozen=True, tag="pong"):
    """The answer to `ping`."""


class RateLimit(Struct, frozen=True):
    """What is left of a limit. `reset`: seconds until all of it is there again."""

    limit: int
    remaining: int
    reset: float


class RateLimits(Struct, frozen=True):
    """Those that hold for whoever asks, the one with the least left of each kind."""

    requests: RateLimit | UnsetType = UNSET
    tokens: RateLimit | UnsetType = UNSET


class Way(Struct, frozen=True, kw_only=True):
    """The way of a request, as far as it is known: the target (`provider/model`), the policy that chose it, how many
    were tried, how many milliseconds it waited for a place, and for the upstream until the answer began or failed."""

    route: str | UnsetType = UNSET
    policy: str | UnsetType = UNSET
    attempts: int | UnsetType = UNSET
    queue_ms: float | UnsetType = UNSET
    upstream_ms: float | UnsetType = UNSET
    rate_limits: RateLimits | UnsetType = UNSET


class Done(Way, frozen=True, kw_only=True, tag="done"):
    """The request was answered to its end: by the target `route` (`provider/model`), which `policy` chose.

    It was the last of so many `attempts`, which waited `queue_ms` for a place, and then `upstream_ms` until the answer
    began.
    """

    id: str
    request_id: str


class Problem(Struct, frozen=True, kw_only=True):
    """What went wrong. `param` is the field's path in the client's frame; `retry_after` in seconds."""

    code: Kind
    message: str
    param: str | UnsetType = UNSET
    retry_after: float | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    upstream_code: str | UnsetType = UNSET


class Error(Way, frozen=True, kw_only=True, tag="error"):
    """With `id`: that request has ended, by this, and what is known of its way is told as in `done`. Without: a frame
    was not understood, and nothing has ended."""

    id: str | UnsetType = UNSET
    error: Problem


class Logprob(Struct, frozen=True):
    """A token and how likely it was; `bytes` where it is part of a character; `top` are its rivals."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | UnsetType = UNSET
    top: tuple[Logprob, ...] | UnsetType = UNSET


class Started(Struct, frozen=True, tag="started"):
    """The upstream took the request. `model` as it was asked for; `created` is Unix time in seconds."""

    id: str
    created: int
    model: str
    system_fingerprint: str | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET


class Opened(Struct, frozen=True, tag="opened"):
    """A part begins; a tool part has the call's `id` and the function's `name`."""

    choice: int
    part: int
    kind: events.PartKind
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class Delta(Struct, frozen=True, tag="delta"):
    """More of a part: `text` (for a tool, of its arguments' JSON), or `data` in base64 (audio, image)."""

    choice: int
    part: int
    text: str | UnsetType = UNSET
    data: bytes | UnsetType = UNSET
    logprobs: tuple[Logprob, ...] | UnsetType = UNSET


class Annotated(Struct, frozen=True, tag="annotated"):
    """Something said about a part: a citation, a signature, a transcript."""

    choice: int
    part: int
    annotation: dict[str, Any]


class Closed(Struct, frozen=True, tag="closed"):
    """A part is complete."""

    choice: int
    part: int


class Finished(Struct, frozen=True, tag="finished"):
    """A choice is complete. `native_reason` is the upstream's own word where it is none of ours."""

    choice: int
    reason: events.Reason
    native_reason: str | UnsetType = UNSET
    stop_sequence: str | UnsetType = UNSET


class Usage(Struct, frozen=True, kw_only=True, tag="usage"):
    """Tokens so far; the last one is `final`. The details are parts of the totals."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_written_tokens: int
    reasoning_tokens: int
    input_audio_tokens: int
    output_audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    final: bool
    estimated: bool


class Notice(Struct, frozen=True, tag="notice"):
    """Something about the answer that is not of it."""

    kind: str
    data: dict[str, Any]


class Embedding(Struct, frozen=True):
    """The vector of the input of that number: as `values`, or, where base64 was asked for, as `packed` float32."""

    index: int
    values: list[float] | UnsetType = UNSET
    packed: str | UnsetType = UNSET


class Result(Struct, frozen=True, tag="result"):
    """The vectors of an `embeddings` request."""

    embeddings: list[Embedding]


AnyEvent = Started | Opened | Delta | Annotated | Closed | Finished | Usage | Notice | Result


class Events(Struct, frozen=True, tag="events"):
    """The events of one read of the upstream, one or more, in order."""

    id: str
    events: list[AnyEvent]


class Explanation(Struct, frozen=True, kw_only=True, tag="explanation"):
    """The answer to `explain`: the model and then its fallbacks, with their targets, in the order in which they would
    be asked, those that are rejected last."""

    id: str
    request_id: str
    model: str
    stages: tuple[Stage, ...]
    rate_limits: RateLimits | UnsetType = UNSET


ServerFrame = Ready | Events | Error | Done | Explanation | Pong

# --- from the wire -------------------------------------------------------------------------------------------------


class NotJson(ValueError):
    """A frame that is no JSON at all."""


class BadFrame(Exception):
    """A frame that is none of ours. `failure` names the field; `id`: the request that it would have started."""

    def __init__(self, failure: Failure, id: str | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.id = id


_TOO_DEEP: Final = invalid("the frame is nested too deeply")
_NAMED: Final = ("start", "explain")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_frame: Callable[[bytes], ClientFrame] = msgspec.json.Decoder(ClientFrame).decode


def decode_frame(data: bytes) -> ClientFrame:
    """A client's frame. Raises BadFrame, NotJson."""
    try:
        return _frame(data)
    except msgspec.ValidationError as error:
        given = _plain(data)
        if not isinstance(given, dict):
            raise BadFrame(invalid("the frame must be a JSON object")) from None
        raise BadFrame(refused(error, kind=ClientFrame), named(given, _NAMED)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFrame(invalid(f"the frame can't be read: {error}"), named(_plain(data), _NAMED)) from None
    except RecursionError:
        raise BadFrame(_TOO_DEEP) from None


def _plain(data: bytes) -> Any:
    """Raises BadFrame, NotJson."""
    try:
        return grammatical(data)
    except ValueError as error:
        raise NotJson(str(error)) from None
    except RecursionError:
        raise BadFrame(_TOO_DEEP) from None


def grammatical(data: bytes | str) -> Any:
    """JSON as its grammar has it, with the halves of surrogate pairs that JavaScript sends where a text was cut, and
    numbers beyond all floats. Raises ValueError, RecursionError."""
    return json.loads(data, parse_constant=_no_number)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def named(given: Any, types: Collection[str]) -> str | None:
    """The request that a frame of these types would have started, if its id can be repeated."""
    if not isinstance(given, dict) or given.get("type") not in types:
        return None
    id = given.get("id")
    return id if isinstance(id, str) and 0 < len(id) <= 128 and not _SURROGATE.search(id) else None


def decode_request(start: Start | Explain) -> Chat | Embed:
    """What is asked. A chat is streamed unless it says `"stream": false`. Raises Failure (invalid_request)."""
    body = bytes(start.request)
    if not body.startswith(b"{"):
        raise invalid("invalid 'request': it must be an object")
    if start.operation == "embeddings":
        return decode_embed(body)
    chat = decode_chat(body).chat
    assert chat.origin is not UNSET
    return replace(chat, stream=True) if chat.origin.fields.get("stream", NULL) == NULL else chat


# --- to the wire ---------------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode


def encode_frame(frame: Ready | Pong) -> str:
    """One of the frames that are as their structs are."""
    return _encode(frame).decode()


def encode_done(id: str, context: Context) -> str:
    """The end of a request that was answered."""
    return _encode(Done(id=id, request_id=context.request_id, **way.facts(context))).decode()


def encode_explanation(id: str, found: CoreExplanation, context: Context) -> str:
    """The answer to `explain`."""
    told = Explanation(
        id=id, request_id=context.request_id, model=found.model, stages=found.stages, **way.facts(context)
    )
    return _encode(told).decode()


def encode_error(
    failure: Failure,
    id: str | None = None,
    request_id: str | None = None,
    facts: Mapping[str, Any] = {},
    beside: Collection[str] = (),
) -> str:
    """The end of the request `id`, with its way (`way.facts`), or, without one, what is wrong with a frame. `beside`:
    what the frame has beside its request, and a failure may name."""
    param = failure.param or ""
    if request_id is not None and param not in beside:  # it is the request's, in the dialect of its body
        param = f"request.{param}" if param else "request" if failure.kind is Kind.INVALID_REQUEST else ""
    problem = Problem(
        code=failure.kind,
        message=failure.message,
        param=param or UNSET,
        retry_after=UNSET if failure.retry_after is None else failure.retry_after,
        request_id=request_id or UNSET,
        upstream_code=failure.code or UNSET,
    )
    return _encode(Error(id=UNSET if id is None else id, error=problem, **facts)).decode()


class EventEncoder:
    """The events of one request to frames. One per request."""

    def __init__(self, id: str, request: Chat | Embed) -> None:
        self._head = b'{"type":"events","id":%b,"events":[' % _encode(id)
        self._request = request
        self._prefixes: dict[tuple[int, int], bytes] = {}  # what stands before the words of a part

    def encode(self, batch: events.Batch) -> str | None:
        """The events of a batch in one frame; None when there are none."""
        if not batch:
            return None
        out: list[bytes] = []
        for event in batch:
            if type(event) is events.Delta and event.logprobs is UNSET and type(event.data) is str:
                out.append(b"%b%b}" % (self._prefix(event.choice, event.part), _encode(event.data)))
            else:
                out.append(_encode(self._event(event)))
        return b"".join((self._head, b",".join(out), b"]}")).decode()

    def _prefix(self, choice: int, part: int) -> bytes:
        known = self._prefixes.get((choice, part))
        if known is None:
            known = b'{"type":"delta","choice":%d,"part":%d,"text":' % (choice, part)
            self._prefixes[choice, part] = known
        return known

    def _event(self, event: events.Event) -> AnyEvent:
        match event:
            case events.Delta(choice, part, data):
                text, raw = (data, UNSET) if isinstance(data, str) else (UNSET, data)
                return Delta(choice, part, text, raw, _logprobs(event.logprobs))
            case events.Opened():
                return Opened(event.choice, event.part, event.kind, event.id, event.name)
            case events.Closed():
                return Closed(event.choice, event.part)
            case events.Finished():
                return Finished(event.choice, event.reason, event.native_reason, event.stop_sequence)
            case events.Started():
                return Started(event.id, event.created, self._request.model, event.fingerprint, event.tier)
            case CoreUsage():
                return _usage(event)
            case events.Annotated():
                return Annotated(event.choice, event.part, event.annotation)
            case events.Notice():
                return Notice(event.kind, event.data)
            case events.Result():
                return Result([self._vector(vector) for vector in event.value.vectors])

    def _vector(self, vector: events.Embedding) -> Embedding:
        if isinstance(self._request, Embed) and self._request.packed:
            return Embedding(vector.index, packed=packed(vector.values))
        return Embedding(vector.index, floats(vector.values))


def _logprobs(given: Iterable[events.TokenLogprob] | UnsetType) -> tuple[Logprob, ...] | UnsetType:
    if given is UNSET:
        return UNSET
    return tuple(
        [
            Logprob(lp.token, lp.logprob, UNSET if lp.bytes is None else lp.bytes, _logprobs(lp.top) or UNSET)
            for lp in given
        ]
    )


def _usage(usage: CoreUsage) -> Usage:
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        cache_written_tokens=usage.cache_written_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        accepted_prediction_tokens=usage.accepted_prediction_tokens,
        rejected_prediction_tokens=usage.rejected_prediction_tokens,
        final=usage.final,
        estimated=usage.source == "estimated",
    )
