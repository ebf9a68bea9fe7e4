"""What a client asks, whichever protocol it used. Absent is `UNSET`, never None.

Tool calls and reasoning are ordered parts of a message, not fields of it: some dialects interleave them.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Raw, Struct, UnsetType

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Text(Struct, frozen=True, tag="text"):
    """Words."""

    text: str
    extra: dict[str, Any] | UnsetType = UNSET


class Image(Struct, frozen=True, tag="image"):
    """A picture, by `http(s):` or `data:` URL."""

    url: str
    detail: str | UnsetType = UNSET
    extra: dict[str, Any] | UnsetType = UNSET


class Audio(Struct, frozen=True, tag="audio"):
    """Sound: base64 `data` in `format` (wav, mp3 ...)."""

    data: str
    format: str
    extra: dict[str, Any] | UnsetType = UNSET


class File(Struct, frozen=True, tag="file"):
    """A document, by id or as a `data:` URL."""

    id: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    extra: dict[str, Any] | UnsetType = UNSET


class ToolCall(Struct, frozen=True, tag="tool_call"):
    """A call that the model makes; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str
    extra: dict[str, Any] | UnsetType = UNSET


class ToolResult(Struct, frozen=True, tag="tool_result"):
    """What the tool answered to the call with that id."""

    call_id: str
    parts: tuple[Part, ...]


class Reasoning(Struct, frozen=True, tag="reasoning"):
    """The model's thoughts, as it showed them."""

    text: str
    signature: str | UnsetType = UNSET


class Refusal(Struct, frozen=True, tag="refusal"):
    """The model's words for not answering."""

    text: str


class Opaque(Struct, frozen=True, tag="opaque"):
    """Something of one dialect that we have no name for; only that dialect can send it on."""

    dialect: str
    raw: dict[str, Any]


Part: TypeAlias = Text | Image | Audio | File | ToolCall | ToolResult | Reasoning | Refusal | Opaque


class Message(Struct, frozen=True, kw_only=True):
    """One turn of the conversation."""

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | UnsetType = UNSET
    extra: dict[str, Any] | UnsetType = UNSET


class Tool(Struct, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class ToolChoice(Struct, frozen=True, kw_only=True):
    """May the model call tools, must it, and which."""

    mode: Literal["none", "auto", "required", "named"]
    name: str | UnsetType = UNSET


class TextOutput(Struct, frozen=True, tag="text"):
    """Free text."""


class JsonOutput(Struct, frozen=True, tag="json"):
    """Any JSON object."""


class SchemaOutput(Struct, frozen=True, kw_only=True, tag="schema"):
    """JSON that fits the schema."""

    schema: dict[str, Any]
    name: str = "output"
    description: str | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class GrammarOutput(Struct, frozen=True, tag="grammar"):
    """Text that fits a GBNF grammar."""

    grammar: str


Output: TypeAlias = TextOutput | JsonOutput | SchemaOutput | GrammarOutput


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are drawn. `max_tokens` bounds the output, reasoning included."""

    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    logit_bias: dict[str, float] | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET


class Origin(Struct, frozen=True):
    """The request as it came in: its dialect, the body's fields byte for byte, and what they were decoded to.

    An adapter of the same dialect sends `fields` on and replaces only what is another than in `decoded`, which holds
    the values of the request's own fields, in their order.
    """

    dialect: str
    fields: dict[str, Raw]
    decoded: tuple[Any, ...]

    def changed(self, request: Chat | Embed) -> list[str]:
        """The names of the fields that are not what they were."""
        names = type(request).__struct_fields__
        return [name for name, value in zip(names, self.decoded, strict=False) if getattr(request, name) is not value]


class Chat(Struct, frozen=True, tag="chat"):
    """A conversation to go on with. `top_logprobs` is how many rivals of each token to give."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool | Opaque, ...] | UnsetType = UNSET
    tool_choice: ToolChoice | Opaque | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    output: Output | UnsetType = UNSET
    sampling: Sampling = Sampling()
    n: int = 1
    stop: tuple[str, ...] | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET
    reasoning_effort: str | UnsetType = UNSET
    user: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    stream: bool = False
    extra: dict[str, Any] | UnsetType = UNSET
    origin: Origin | UnsetType = UNSET


MAX_INPUTS = 2048  # texts of one Embed, as OpenAI has it
MAX_DIMENSIONS = 65_536


class Embed(Struct, frozen=True, tag="embed"):
    """Texts (or their tokens) to turn into vectors. `packed`: the client would rather have packed float32."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | UnsetType = UNSET
    packed: bool = False
    user: str | UnsetType = UNSET
    stream: bool = False
    extra: dict[str, Any] | UnsetType = UNSET
    origin: Origin | UnsetType = UNSET


Request: TypeAlias = Chat | Embed
