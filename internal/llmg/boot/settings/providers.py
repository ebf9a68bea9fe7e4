"""Who can answer: the kinds of providers, and what is done when one is in trouble."""

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from llmg.boot.settings.problems import Expected
from llmg.boot.settings.types import (
    NO_BOOLEAN,
    Count,
    HeaderName,
    HeaderValue,
    HttpUrl,
    Key,
    PeerAddress,
    PositiveCount,
    Section,
    Text,
    UpTo1h,
    UpTo2m,
    UpTo4h,
    UpTo24h,
    Word,
    Words,
    ZeroTo24h,
)


def _url_path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "#" in value:
        raise Expected("a path that begins with `/`, such as /health", show=True)
    return value


UrlPath = Annotated[
    str,
    AfterValidator(_url_path),
    WithJsonSchema({"type": "string", "pattern": "^/[!-~]*$"}),
    Words("path that begins with `/`"),
]

ENGINES = ("xllamacpp",)
"""The engines that come with llmg. Any other needs `external`, the command that starts it."""


class Timeouts(Section):
    """Limits of one call to a provider."""

    connect: UpTo2m = Field(default=5.0, description="To connect.")
    first_event: UpTo4h = Field(default=300.0, description="From the request to the first event of the answer.")
    idle: UpTo4h = Field(default=120.0, description="Between one event and the next.")
    total: UpTo24h = Field(default=3600.0, description="For the whole call.")


class TimeoutOverrides(Section):
    """A model's own limits; what is left out is the provider's."""

    connect: UpTo2m | None = Field(default=None, description="To connect.")
    first_event: UpTo4h | None = Field(default=None, description="From the request to the first event of the answer.")
    idle: UpTo4h | None = Field(default=None, description="Between one event and the next.")
    total: UpTo24h | None = Field(default=None, description="For the whole call.")

    def over(self, timeouts: Timeouts) -> Timeouts:
        """The provider's limits with these over them."""
        return timeouts.model_copy(update=self.model_dump(exclude_none=True))


class Breaker(Section):
    """When a target that fails is left alone, and for how long."""

    enabled: bool = Field(default=True, description="Whether it ever is.")
    failure_ratio: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = Field(
        default=0.5, description="It is when this share of the calls within `window` failed, 0 to 1,"
    )
    min_calls: PositiveCount = Field(default=20, description="if there were so many,")
    window: UpTo1h = Field(default=30.0, description="the time in which calls are counted;")
    consecutive: PositiveCount = Field(default=5, description="or when so many failed one after the other.")
    open_for: UpTo1h = Field(default=5.0, description="After this time it is tried again,")
    probes: PositiveCount = Field(
        default=1, description="by so many requests at a time; it is back when as many were answered."
    )


class HealthCheck(Section):
    """How a provider is asked whether it is there, before a request pays for asking."""

    interval: UpTo1h = Field(default=10.0, description="How often; give or take a tenth.")
    timeout: UpTo2m = Field(default=2.0, description="How long an answer may take.")
    failures: PositiveCount = Field(
        default=2,
        description="When so many checks have failed one after the other, its models are asked only where there is no "
        "other target,",
    )
    passes: PositiveCount = Field(default=1, description="until as many have passed.")
    path: UrlPath | None = Field(
        default=None,
        description="Of a provider that speaks HTTP: what is fetched, from the server's root. Left out: /models below "
        "its base_url. Any answer with a status below 500 passes.",
        json_schema_extra={"examples": ["/health"]},
    )


class Resilience(Section):
    """What is done when a target is in trouble or full. A target is a model of the provider."""

    health_check: HealthCheck | None = Field(
        default=None, description="Asking the provider at regular times whether it is there. Left out: never."
    )
    breaker: Breaker = Field(default=Breaker(), description="When a target that fails is left alone.")
    max_cooldown: ZeroTo24h = Field(
        default=60.0,
        description="The longest that a target is left alone which asks for it (429 or 503 with Retry-After). 0: it "
        "asks in vain.",
    )
    max_in_flight: Count = Field(default=0, description="Requests of a target at the same time. 0: any number.")
    max_queue: Count = Field(default=100, description="Requests that may wait for a place then; one more: 503.")
    queue_timeout: UpTo1h = Field(default=10.0, description="How long they may: then 503.")


class BreakerOverrides(Section):
    """A model's or a target's own; what is left out is as elsewhere."""

    enabled: bool | None = Field(default=None, description="Whether it is ever left alone.")
    failure_ratio: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] | None = Field(
        default=None, description="It is when this share of the calls within `window` failed, 0 to 1,"
    )
    min_calls: PositiveCount | None = Field(default=None, description="if there were so many,")
    window: UpTo1h | None = Field(default=None, description="the time in which calls are counted;")
    consecutive: PositiveCount | None = Field(default=None, description="or when so many failed one after the other.")
    open_for: UpTo1h | None = Field(default=None, description="After this time it is tried again,")
    probes: PositiveCount | None = Field(default=None, description="by so many requests at a time.")


class ResilienceOverrides(Section):
    """A model's or a target's own; what is left out is the provider's.

    A target for which it differs is known apart: its breaker and its queue are not those of the same model elsewhere.
    """

    breaker: BreakerOverrides = Field(default=BreakerOverrides(), description="When a target that fails is left alone.")
    max_cooldown: ZeroTo24h | None = Field(
        default=None, description="The longest that a target is left alone which asks for it. 0: it asks in vain."
    )
    max_in_flight: Count | None = Field(default=None, description="Requests of a target at the same time. 0: any.")
    max_queue: Count | None = Field(default=None, description="Requests that may wait for a place then; one more: 503.")
    queue_timeout: UpTo1h | None = Field(default=None, description="How long they may: then 503.")

    def over(self, resilience: Resilience) -> Resilience:
        """The provider's, with these over it."""
        said = self.model_dump(exclude_none=True, exclude={"breaker"})
        breaker = resilience.breaker.model_copy(update=self.breaker.model_dump(exclude_none=True))
        return resilience.model_copy(update={**said, "breaker": breaker})

    def before(self, farther: "ResilienceOverrides") -> "ResilienceOverrides":
        """These, and for what they leave out those that are farther from the target."""
        said = farther.model_dump(exclude_none=True) | self.model_dump(exclude_none=True)
        breaker = farther.breaker.model_dump(exclude_none=True) | self.breaker.model_dump(exclude_none=True)
        return ResilienceOverrides.model_validate({**said, "breaker": breaker})


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
    threads: Count = Field(default=0, description="Threads the engine computes with. 0: one less than there are cores.")
    context_size: Count = Field(
        default=4096, description="The context window in tokens, prompt and answer together. 0: the model's own."
    )
    parallel: PositiveCount = Field(
        default=4, description="Requests that are answered at the same time by continuous batching."
    )
    startup_timeout: UpTo4h = Field(default=120.0, description="The time to start the engine and load the model.")
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
        check = self.resilience.health_check
        if check is not None and self.engine is not None:
            raise Expected("no `health_check` together with `engine`: llmg watches the processes that it starts")
        if check is not None and check.path is not None:
            raise Expected("no `path` for the `health_check` of a backend: it has a call of its own for that")
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
    organization: Word | None = Field(default=None, description="Sent as `OpenAI-Organization`.")
    headers: dict[HeaderName, HeaderValue] = Field(default={}, description="Headers sent with each call.")
    max_connections: Count = Field(
        default=0, description="Connections open at the same time. 0: as many as there are calls."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="Limits of one call.")
    resilience: Resilience = Field(default=Resilience(), description="What is done when it is in trouble or full.")

    def credentials(self) -> tuple[str | None, dict[str, str]]:
        """The key, if there is one, and the headers that each call carries."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        if self.organization:
            headers["OpenAI-Organization"] = self.organization
        return self.api_key.get_secret_value() if self.api_key else None, headers


class EchoProvider(Section):
    """Answers with what it was asked: for tests and demonstrations."""

    kind: Literal["echo"] = Field(description="Answers with what it was asked.")


Provider = Annotated[BackendProvider | OpenAIProvider | EchoProvider, Field(discriminator="kind")]
