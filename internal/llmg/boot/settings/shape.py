"""The shape of the configuration. Each field says what it means: the JSON schema is made from this file."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from llmg.boot.settings import units
from llmg.boot.settings.problems import Expected

ENGINES = ("xllamacpp",)
"""The engines that come with llmg. Any other needs `external`, the command that starts it."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, 5.6.2: token
_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


def _positive(value: float) -> float:
    if value <= 0:
        raise Expected("more than 0", show=True)
    return value


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise Expected("a number", show=True)  # YAML's `yes` would otherwise become 1
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _address(value: str) -> str:
    units.address(value)
    return value


def _peer_address(value: str) -> str:
    if units.address(value)[1] == 0:
        raise Expected("host:port with a port from 1 to 65535", show=True)
    return value


def _provider_name(value: str) -> str:
    if not _PROVIDER_NAME.match(value):  # "/" ends the provider's name in PROVIDER/MODEL
        raise Expected("a name of letters, digits, `.`, `_` and `-` that starts with a letter or digit")
    return value


def _model_name(value: str) -> str:
    if not value or len(value) > 256 or not value.isprintable() or " " in value:
        raise Expected("a name of 1 to 256 printable characters without spaces")
    return value


def _header_name(value: str) -> str:
    if not _HEADER_NAME.match(value):
        raise Expected("the name of an HTTP header")
    return value


def _header_value(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value.get_secret_value()):
        raise Expected("the value of an HTTP header: one line of Latin-1 text")
    return value


def _word(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise Expected("a word of printable ASCII: it is sent as a header")
    return value


def _key(value: SecretStr | None) -> SecretStr | None:
    """An empty key is no key, so that `${KEY:-}` can mean "if there is one"."""
    return _header_value(value) if value else None


def _api_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]{16,256}", value.get_secret_value()):
        raise Expected("a key of 16 to 256 printable ASCII characters without spaces")
    return value


def _number_or_text(minimum: str, pattern: str) -> WithJsonSchema:
    number: dict[str, Any] = {"type": "number", minimum: 0}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": pattern}]})


Duration = Annotated[
    float,
    BeforeValidator(units.duration),
    AfterValidator(_positive),
    _number_or_text("exclusiveMinimum", units.DURATION_PATTERN),
]
"""Seconds, more than 0."""
DurationOrZero = Annotated[float, BeforeValidator(units.duration), _number_or_text("minimum", units.DURATION_PATTERN)]
"""Seconds, 0 or more."""
Size = Annotated[
    int,
    BeforeValidator(units.size),
    AfterValidator(_positive),
    _number_or_text("exclusiveMinimum", units.SIZE_PATTERN),
]
"""Bytes, more than 0."""
Count = Annotated[int, Field(ge=0), BeforeValidator(_no_boolean)]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_no_boolean)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_boolean)]
LoadFactor = Annotated[float, Field(ge=1, allow_inf_nan=False), BeforeValidator(_no_boolean)]
PositiveCount = Annotated[int, Field(ge=1), BeforeValidator(_no_boolean)]
ServerAddress = Annotated[
    str, AfterValidator(_address), WithJsonSchema({"type": "string", "pattern": r"^\S+:\d{1,5}$"})
]
PeerAddress = Annotated[
    str, AfterValidator(_peer_address), WithJsonSchema({"type": "string", "pattern": r"^\S+:\d{1,5}$"})
]
HttpUrl = Annotated[
    str, AfterValidator(units.http_url), WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s?#@]+$"})
]
ProviderName = Annotated[str, AfterValidator(_provider_name)]
ModelName = Annotated[str, AfterValidator(_model_name)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[SecretStr, AfterValidator(_header_value)]
Key = Annotated[SecretStr | None, AfterValidator(_key)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
Text = Annotated[str, Field(min_length=1)]
HostName = Annotated[str, AfterValidator(units.host_name)]
WebOrigin = Annotated[
    str, AfterValidator(units.origin), WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s/?#@]+$"})
]
IpRange = Annotated[str, AfterValidator(units.ip_range)]


class Section(BaseModel):
    """What all parts of the configuration share: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Tls(Section):
    """A server's TLS, with files in PEM. Paths are from the folder that llmg is started in."""

    cert: Path = Field(description="The server's certificate, and after it those of its issuers.")
    key: Path = Field(description="The certificate's private key, without a passphrase.")
    client_ca: Path | None = Field(
        default=None, description="Who issues clients' certificates. With it, clients must show one (mTLS)."
    )


class Http(Section):
    """The HTTP server: REST and what else speaks HTTP."""

    server_addr: ServerAddress = Field(
        default="127.0.0.1:8080",
        description="Where to listen, host:port. Port 0 takes a free one; 0.0.0.0 or [::] means all interfaces.",
    )
    max_body: Size = Field(
        default=32 * 2**20, description="The largest request body, in bytes. A larger one is refused: 413."
    )
    max_headers: Size = Field(
        default=64 * 2**10, description="The most a request's line and headers may take together, in bytes."
    )
    header_timeout: Duration = Field(default=10.0, description="The time a client may take to send its headers.")
    body_timeout: Duration = Field(default=60.0, description="The time a client may take to send its body.")
    write_timeout: Duration = Field(
        default=120.0, description="How long a client may leave unread what there is for it, before it is let go."
    )
    keep_alive: DurationOrZero = Field(
        default=75.0, description="How long an idle connection is kept open for the next request."
    )
    heartbeat: Duration = Field(
        default=10.0,
        description="How long a stream's status line waits for the first content. After that the status goes out, "
        "and a comment is sent at this interval while nothing else is.",
    )
    backlog: PositiveCount = Field(
        default=2048, description="How many connections may wait to be accepted (the kernel may allow fewer)."
    )
    access_log: bool = Field(default=False, description="Write a log line for each request.")
    tls: Tls | None = Field(default=None, description="HTTPS instead of HTTP.")
    hosts: tuple[HostName, ...] = Field(
        default=(),
        description="Names of this server, besides those of loopback. Without keys, and where it listens on loopback "
        "or has such names, it answers to no other: no web page can reach it by a name of its own (DNS rebinding).",
    )
    origins: tuple[WebOrigin, ...] = Field(
        default=(),
        description="Origins of other servers' web pages that may use this one, such as https://app.example.com.",
    )
    forwarded_allow_ips: tuple[IpRange, ...] = Field(
        default=(),
        description="Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.",
    )

    @property
    def bind(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port to listen on."""
        return units.address(self.server_addr)


class Grpc(Section):
    """The gRPC server."""

    enabled: bool = Field(default=True, description="Whether gRPC is served at all.")
    server_addr: ServerAddress = Field(
        default="127.0.0.1:8081",
        description="Where to listen, host:port. Port 0 takes a free one; 0.0.0.0 or [::] means all interfaces.",
    )
    max_message: Size = Field(
        default=32 * 2**20,
        le=2**31 - 1,
        description="The largest request, in bytes. A larger one is refused: RESOURCE_EXHAUSTED.",
    )
    reflection: bool = Field(
        default=True, description="Whether clients may ask which services there are, as grpcurl and buf curl do."
    )
    max_calls: Count = Field(
        default=0,
        description="Calls at the same time, of all clients with a key; health and reflection don't count. 0: any "
        "number. One more: RESOURCE_EXHAUSTED.",
    )
    message_timeout: Duration = Field(default=60.0, description="The time a client may take to send its request.")
    max_streams: PositiveCount = Field(
        default=1000, le=2**31 - 1, description="Calls at the same time over one connection; more wait at the client."
    )
    keepalive: Duration = Field(
        default=60.0, description="After so much silence a client is asked whether it is still there."
    )
    keepalive_timeout: Duration = Field(default=20.0, description="The time it has to say so.")
    min_ping_interval: DurationOrZero = Field(
        default=10.0, description="How often a client may ask us. One that asks more often is let go."
    )
    max_connection_age: DurationOrZero = Field(
        default=0.0,
        description="After so long a client is told to connect anew, so that load spreads over new servers. 0: never.",
    )
    tls: Tls | None = Field(default=None, description="TLS instead of plain text.")

    @property
    def bind(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port to listen on."""
        return units.address(self.server_addr)


class Rest(Section):
    """REST in OpenAI's shape, at /v1 of the HTTP server."""

    enabled: bool = Field(default=True, description="Whether it is served at all.")


class WebSocket(Section):
    """Token streams over WebSocket, at /v1/ws of the HTTP server."""

    enabled: bool = Field(default=True, description="Whether it is served at all.")
    max_message: Size = Field(
        default=32 * 2**20, description="The largest message of a client, in bytes. At a larger one the socket closes."
    )
    max_requests: PositiveCount = Field(default=100, description="Requests at the same time over one socket.")
    init_timeout: Duration = Field(default=10.0, description="The time that a client has to show its key.")


class Gateway(Section):
    """The gRPC services as REST in JSON, at /api/v1 of the HTTP server."""

    enabled: bool = Field(default=True, description="Whether it is served at all.")
    docs: bool = Field(default=True, description="Whether it describes itself: /openapi.json, and a page at /docs.")


class GraphQL(Section):
    """GraphQL, at /graphql of the HTTP server, or of one of its own."""

    enabled: bool = Field(default=True, description="Whether GraphQL is served at all.")
    server_addr: ServerAddress | None = Field(
        default=None, description="Where to listen, host:port, instead of at the HTTP server's."
    )
    introspection: bool = Field(default=True, description="Whether clients may ask for the schema.")
    graphiql: bool = Field(default=True, description="Whether browsers that open /graphql get GraphiQL.")
    max_depth: PositiveCount = Field(default=12, description="How deep an operation may be nested.")
    max_aliases: PositiveCount = Field(default=15, description="How many aliases it may have.")
    max_tokens: PositiveCount = Field(default=4000, description="How many tokens of GraphQL's language it may have.")

    @property
    def bind(self) -> tuple[str, int] | None:
        """Host (IPv6 without brackets) and port of its own to listen on."""
        return None if self.server_addr is None else units.address(self.server_addr)


class Log(Section):
    """What is logged, and how."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="The least important level that is written."
    )
    format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = Field(
        default="auto", description="auto: console on a terminal, else json."
    )


class Server(Section):
    """The gateway's processes."""

    workers: PositiveCount = Field(
        default=1, description="Gateway processes that share the port. Local models run once, whatever this is."
    )
    grace: DurationOrZero = Field(
        default=30.0,
        description="The time that requests in flight are given to finish when the gateway is told to stop.",
    )


class Timeouts(Section):
    """Limits of one call to a provider."""

    connect: Duration = Field(default=5.0, description="To connect.")
    first_event: Duration = Field(default=300.0, description="From the request to the first event of the answer.")
    idle: Duration = Field(default=120.0, description="Between one event and the next.")
    total: Duration = Field(default=3600.0, description="For the whole call.")


class TimeoutOverrides(Section):
    """A model's own limits; what is left out is the provider's."""

    connect: Duration | None = Field(default=None, description="To connect.")
    first_event: Duration | None = Field(default=None, description="From the request to the first event of the answer.")
    idle: Duration | None = Field(default=None, description="Between one event and the next.")
    total: Duration | None = Field(default=None, description="For the whole call.")

    def over(self, timeouts: Timeouts) -> Timeouts:
        """The provider's limits with these over them."""
        return timeouts.model_copy(update=self.model_dump(exclude_none=True))


class Breaker(Section):
    """When a target that fails is left alone, and for how long."""

    enabled: bool = Field(default=True, description="Whether it ever is.")
    failure_ratio: Annotated[float, Field(gt=0, le=1), BeforeValidator(_no_boolean)] = Field(
        default=0.5, description="It is when this share of the calls within `window` failed, 0 to 1,"
    )
    min_calls: PositiveCount = Field(default=20, description="if there were so many,")
    window: Duration = Field(default=30.0, description="the time in which calls are counted;")
    consecutive: PositiveCount = Field(default=5, description="or when so many failed one after the other.")
    open_for: Duration = Field(default=5.0, description="After this time it is tried again,")
    probes: PositiveCount = Field(
        default=1, description="by so many requests at a time; it is back when as many were answered."
    )


class Resilience(Section):
    """What is done when a target is in trouble or full. A target is a model of the provider."""

    breaker: Breaker = Field(default=Breaker(), description="When a target that fails is left alone.")
    max_cooldown: DurationOrZero = Field(
        default=60.0,
        description="The longest that a target is left alone which asks for it (429 or 503 with Retry-After). 0: it "
        "asks in vain.",
    )
    max_in_flight: Count = Field(default=0, description="Requests of a target at the same time. 0: any number.")
    max_queue: Count = Field(default=100, description="Requests that may wait for a place then; one more: 503.")
    queue_timeout: Duration = Field(default=10.0, description="How long they may: then 503.")


class BackendProvider(Section):
    """A model engine in a process of its own, spoken to by gRPC: started by llmg (engine) or running (address)."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["engine"]}, {"required": ["address"]}]},
    )

    kind: Literal["backend"] = Field(description="A model engine in a process of its own.")
    external: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="The command (program and arguments) that starts an engine which doesn't come with llmg, or one "
        "that is installed in an environment of its own. llmg adds `--addr HOST:PORT`.",
    )
    engine: Text | None = Field(
        default=None,
        description=f"The engine to start. With llmg comes: {', '.join(ENGINES)}. Instead of address.",
        json_schema_extra={"examples": list(ENGINES)},
    )
    address: PeerAddress | None = Field(
        default=None, description="host:port of a backend that is running already. Instead of engine."
    )
    token: Key = Field(default=None, description="The bearer token of the backend at address.")
    threads: Count = Field(default=0, description="Threads the engine computes with. 0: as many as there are cores.")
    context_size: Count = Field(
        default=4096, description="The context window in tokens, prompt and answer together. 0: the model's own."
    )
    parallel: PositiveCount = Field(
        default=4, description="Requests that are answered at the same time by continuous batching."
    )
    startup_timeout: Duration = Field(default=120.0, description="The time to start the engine and load the model.")
    options: tuple[Text, ...] = Field(default=(), description="Engine options, passed on as they are: name:value.")
    env: dict[Text, SecretStr] = Field(default={}, description="Environment variables for the engine's process.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Limits of one call.")
    resilience: Resilience = Field(default=Resilience(), description="What is done when it is in trouble or full.")

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, value: str | None, info: ValidationInfo) -> str | None:
        # A failed `external` is missing in data: it is reported by itself.
        if value is not None and value not in ENGINES and info.data.get("external", ()) is None:
            known = ", ".join(ENGINES)
            raise Expected(f"a known engine ({known}), or `external` with its command", choices=ENGINES, show=True)
        return value

    @model_validator(mode="after")
    def _engine_or_address(self) -> "BackendProvider":
        if self.engine is None and self.address is None:
            raise Expected(
                "`engine` (to start one; with `external`, a name of your choice) or `address` (of a running one)"
            )
        if self.engine is not None and self.address is not None:
            raise Expected("either `engine` or `address`, not both")
        unused = ("external", "env") if self.engine is None else ("token",)
        for name in unused:
            if getattr(self, name):
                raise Expected(f"no `{name}` together with `{'address' if self.engine is None else 'engine'}`")
        return self


class OpenAIProvider(Section):
    """An upstream that speaks OpenAI's REST: OpenAI itself, or any compatible server."""

    kind: Literal["openai"] = Field(description="An upstream that speaks OpenAI's REST.")
    base_url: HttpUrl = Field(
        description="What comes before /chat/completions. Most servers' ends with /v1.",
        json_schema_extra={"examples": ["https://api.openai.com/v1"]},
    )
    api_key: Key = Field(
        default=None, description="Sent as `Authorization: Bearer`. Write ${VARIABLE}, not the key itself."
    )
    organization: Annotated[Text, AfterValidator(_word)] | None = Field(
        default=None, description="Sent as `OpenAI-Organization`."
    )
    headers: dict[HeaderName, HeaderValue] = Field(default={}, description="Headers sent with each call.")
    max_connections: Count = Field(
        default=0, description="Connections open at the same time. 0: as many as there are calls."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="Limits of one call.")
    resilience: Resilience = Field(default=Resilience(), description="What is done when it is in trouble or full.")


class EchoProvider(Section):
    """Answers with what it was asked: for tests and demonstrations."""

    kind: Literal["echo"] = Field(description="Answers with what it was asked.")


Provider = Annotated[BackendProvider | OpenAIProvider | EchoProvider, Field(discriminator="kind")]


class PlainPolicy(Section):
    """A policy that has no options."""

    kind: Literal["weighted", "round_robin", "random", "least_busy", "lowest_cost"] = Field(
        description="weighted: in turns, by weight. round_robin: in turns. random: by chance and weight. least_busy: "
        "the fewest requests in flight for the weight. lowest_cost: the lowest price of this request."
    )


class P2C(Section):
    """Of two targets drawn at random, the one with the lower latency x requests in flight."""

    kind: Literal["p2c"] = Field(description="The better of two drawn at random.")
    decay: Duration = Field(default=10.0, description="How long a latency counts; longer ago, ever less.")


class LowestLatency(Section):
    """The target with the lowest time to its first event."""

    kind: Literal["lowest_latency"] = Field(description="The lowest time to the first event.")
    decay: Duration = Field(default=10.0, description="How long a latency counts; longer ago, ever less.")
    explore: Share = Field(
        default=0.05, description="The share of requests that go to the target not asked for longest, 0 to 1."
    )
    load_factor: LoadFactor = Field(
        default=1.25, description="How much more than its share of the requests in flight a target may have: 1 or more."
    )


class Sticky(Section):
    """Requests of one user or session go to one target, as long as it isn't overloaded."""

    kind: Literal["sticky"] = Field(description="One user or session, one target.")
    by: Literal["user", "session"] = Field(default="user", description="What has to be the same.")
    load_factor: LoadFactor = Field(
        default=1.25, description="How much more than its share of the requests in flight a target may have: 1 or more."
    )


class PrefixPolicy(Section):
    """Prompts that begin alike go to one target, whose cache holds the beginning, as long as it isn't overloaded."""

    kind: Literal["prefix"] = Field(description="Prompts that begin alike, one target.")
    block: PositiveCount = Field(default=512, description="Bytes of the prompt that are compared as one.")
    capacity: PositiveCount = Field(default=65_536, description="Blocks that are remembered; about 150 bytes each.")
    expiry: Duration = Field(default=600.0, description="How long a block is remembered at least, after its last use.")
    load_factor: LoadFactor = Field(
        default=1.25, description="How much more than its share of the requests in flight a target may have: 1 or more."
    )
    slack: Count = Field(default=1, description="Requests in flight that it may have on top of that.")


class _Short:
    """A policy's name stands for the policy with its defaults: `p2c` is `{kind: p2c}`."""

    def __init__(self, *sections: type[Section]) -> None:
        self._kinds = [kind for one in sections for kind in get_args(one.model_fields["kind"].annotation)]

    def _long(self, value: object) -> object:
        if isinstance(value, str):
            if value not in self._kinds:
                raise Expected(f"one of {', '.join(self._kinds)}", choices=self._kinds, show=True)
            return {"kind": value}
        if isinstance(value, dict | Section):
            return value
        raise Expected("a policy's name, or a mapping with its `kind`", show=True)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._long, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "enum": self._kinds}, handler(schema)]}


InnerPolicy = PlainPolicy | P2C | LowestLatency | Sticky | PrefixPolicy
TierPolicy = Annotated[InnerPolicy, Field(discriminator="kind"), _Short(*get_args(InnerPolicy))]


class PriorityPolicy(Section):
    """Targets in tiers: a tier is asked when all targets of the tiers before it have failed."""

    kind: Literal["priority"] = Field(description="In tiers, by the targets' `priority`.")
    tiers: Annotated[tuple[TierPolicy, ...], Field(min_length=1)] = Field(
        default=(PlainPolicy(kind="weighted"),),
        description="The policy within each tier, the first tier's first. The last one holds for all further tiers.",
    )

    def within(self, place: int) -> InnerPolicy:
        """The policy of the nth tier in use, from 0."""
        return self.tiers[min(place, len(self.tiers) - 1)]


Policy = Annotated[
    InnerPolicy | PriorityPolicy,
    Field(discriminator="kind"),
    _Short(*get_args(InnerPolicy), PriorityPolicy),
]


class Price(Section):
    """What a target's tokens cost, in USD per million tokens."""

    input: Money = Field(description="Of the prompt's tokens.")
    output: Money = Field(description="Of the answer's tokens.")


class Target(Section):
    """A model of a provider that may answer."""

    provider: Text = Field(description="The name of a provider declared under `providers`.")
    model: Text = Field(
        description="The provider's name of the model. For a backend: a packaged model, a path to a .gguf file, "
        "or the name of a file below models_dir."
    )
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_no_boolean)] = Field(
        default=1.0,
        description="The share of requests that go here, relative to the other targets'; for policies that count what "
        "is in flight, the share of that.",
    )
    priority: Count = Field(
        default=0, description="With the policy `priority`: the tier. Lower ones are asked first; 0 is the first."
    )
    price: Price | None = Field(default=None, description="With the policy `lowest_cost`: what its tokens cost.")


class Retries(Section):
    """How often a model's targets are asked again, when all have failed before the answer began."""

    max: Count = Field(default=1, description="For one request, at most.")
    backoff: Duration = Field(
        default=0.1, description="The longest wait before the first; it doubles each time, and is drawn at random,"
    )
    max_backoff: Duration = Field(default=2.0, description="up to this.")
    budget: Share = Field(default=0.2, description="Retries per request, of all the model's: 0 to 1.")
    floor: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_no_boolean)] = Field(
        default=1.0, description="Retries per second that there may be all the same."
    )


class Model(Section):
    """A model that clients may ask for by name, and who answers it."""

    policy: Policy = Field(
        default=PlainPolicy(kind="weighted"),
        description="How a target is chosen: a policy's name, or `kind` and options. When a target fails before its "
        "answer began, the next is chosen among the others.",
    )
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = Field(description="Who may answer; at least one.")
    embeddings: bool | None = Field(
        default=None, description="Whether the model makes embeddings. Left out: whatever its provider can do."
    )
    timeouts: TimeoutOverrides = Field(
        default=TimeoutOverrides(), description="Limits of a call, where not the provider's."
    )
    retries: Retries = Field(default=Retries(), description="How often its targets are asked again.")
    fallbacks: tuple[ModelName, ...] = Field(
        default=(),
        description="Models that are asked when all targets have failed before the answer began, in this order; after "
        "each, its own fallbacks.",
    )
    fallback_on: tuple[Literal["context_length_exceeded", "content_filtered"], ...] = Field(
        default=(), description="What else leads to the fallbacks: the prompt is too long, or was refused."
    )

    @model_validator(mode="after")
    def _what_the_policy_needs(self) -> "Model":
        tiers = sorted({target.priority for target in self.targets})
        if isinstance(self.policy, PriorityPolicy):
            if len(self.policy.tiers) > len(tiers):
                raise Expected(f"at most as many `tiers` as the targets have priorities ({len(tiers)})")
            asked = {tier: self.policy.within(place).kind for place, tier in enumerate(tiers)}
        else:
            if tiers != [0]:
                raise Expected("the policy `priority`, as a target has a `priority`")
            asked = {0: self.policy.kind}
        if any(asked[target.priority] == "lowest_cost" and target.price is None for target in self.targets):
            raise Expected("a `price` for each target that the policy `lowest_cost` chooses from")
        return self


class Settings(BaseSettings):
    """The configuration of llmg."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix="LLMG_", env_nested_delimiter="__"
    )

    http: Http = Field(default=Http(), description="The HTTP server.")
    grpc: Grpc = Field(default=Grpc(), description="The gRPC server.")
    rest: Rest = Field(default=Rest(), description="REST in OpenAI's shape, at /v1.")
    websocket: WebSocket = Field(default=WebSocket(), description="Token streams over WebSocket, at /v1/ws.")
    gateway: Gateway = Field(default=Gateway(), description="The gRPC services as REST in JSON, at /api/v1.")
    graphql: GraphQL = Field(default=GraphQL(), description="GraphQL, at /graphql.")
    keys: dict[ProviderName, ApiKey] = Field(
        default={},
        description="The API keys that clients must show, by a name of your choice. Write ${VARIABLE}, not the key "
        "itself. Without any, everybody may ask.",
    )
    log: Log = Field(default=Log(), description="What is logged, and how.")
    server: Server = Field(default=Server(), description="The gateway's processes.")
    providers: dict[ProviderName, Provider] = Field(
        default={}, description="Who can answer, by a name of your choice. Clients reach them as PROVIDER/MODEL, too."
    )
    models: dict[ModelName, Model] = Field(default={}, description="The models that clients ask for by name.")
    models_dir: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        default=Path("models"), description="Where model files named without a path are looked for."
    )

    @model_validator(mode="after")
    def _addresses_of_their_own(self) -> "Settings":
        bound = {"http": self.http.bind, "grpc": self.grpc.bind if self.grpc.enabled else None}
        bound["graphql"] = self.graphql.bind if self.graphql.enabled else None
        known: dict[tuple[str, int], str] = {}
        for name, bind in bound.items():
            if bind is not None and bind[1] != 0 and (other := known.setdefault(bind, name)) != name:
                raise Expected(f"addresses that differ, but {other}.server_addr and {name}.server_addr are the same")
        return self

    @field_validator("keys")
    @classmethod
    def _each_its_own(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        names: dict[str, str] = {}
        for name, key in value.items():
            if (other := names.setdefault(key.get_secret_value(), name)) != name:
                raise Expected(f"keys that differ, but '{other}' and '{name}' are the same")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what was passed. Files and environment are `load`'s work, which keeps each value's origin."""
        return (init_settings,)
