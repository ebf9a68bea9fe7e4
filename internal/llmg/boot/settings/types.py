"""What values of the configuration may be: durations, sizes, names, addresses. Each field's section is a `Section`."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
    WithJsonSchema,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

from llmg.boot.settings import units
from llmg.boot.settings.problems import Expected

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, 5.6.2: token
_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


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


@dataclass(frozen=True, slots=True)
class Words:
    """What a value may be, for people: stands among what annotates its type."""

    text: str


@dataclass(frozen=True, slots=True)
class Seconds:
    """A duration: a number of seconds, or text such as `500ms`. More than 0, or at least `least`, and up to `most`: who
    says more has meant another unit."""

    most: float
    least: float | None = None

    def read(self, value: object) -> float:
        """The seconds. Raises Expected."""
        seconds = units.duration(value)
        if seconds > self.most or seconds < (self.least or 0) or (seconds == 0 and self.least is None):
            raise Expected(self.range, hint=self._hint(seconds, value), show=True)
        return seconds

    @property
    def range(self) -> str:
        """In words."""
        most = units.spoken_duration(self.most)
        if self.least is None:
            return f"more than 0, up to {most}"
        return f"{units.spoken_duration(self.least) if self.least else 0} to {most}"

    def _hint(self, seconds: float, value: object) -> str:
        if seconds <= self.most or not units.is_bare(value):
            return ""
        hint = "a number without a unit is seconds"
        return f"{hint}: write {seconds:g}ms if that is meant" if seconds / 1000 <= self.most else hint

    def schema(self) -> dict[str, Any]:
        """The JSON schema."""
        above = {"exclusiveMinimum": 0} if self.least is None else {"minimum": self.least}
        text = {"type": "string", "pattern": units.DURATION_PATTERN}
        return {"anyOf": [{"type": "number", **above, "maximum": self.most}, text]}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return self.schema()


@dataclass(frozen=True, slots=True)
class Bytes:
    """A size: a number of bytes, or text such as `64KiB`."""

    most: int | None = None
    least: int = 2**10

    def read(self, value: object) -> int:
        """The bytes. Raises Expected."""
        size = units.size(value)
        if size < self.least or (self.most is not None and size > self.most):
            hint = f"a number without a unit is bytes: write {size}MiB if that is meant"
            raise Expected(self.range, hint=hint if 0 < size < self.least and units.is_bare(value) else "", show=True)
        return size

    @property
    def range(self) -> str:
        """In words."""
        least = units.spoken_size(self.least)
        return f"{least} or more" if self.most is None else f"{least} to {units.spoken_size(self.most)}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        below = {} if self.most is None else {"maximum": self.most}
        number = {"type": "number", "minimum": self.least, **below}
        return {"anyOf": [number, {"type": "string", "pattern": units.SIZE_PATTERN}]}


NO_BOOLEAN = BeforeValidator(_no_boolean)
LOWER = BeforeValidator(_lower)
UpTo5s = Annotated[float, Seconds(5)]
UpTo1m = Annotated[float, Seconds(60)]
UpTo2m = Annotated[float, Seconds(120)]
UpTo5m = Annotated[float, Seconds(300)]
UpTo10m = Annotated[float, Seconds(600)]
UpTo1h = Annotated[float, Seconds(3600)]
UpTo4h = Annotated[float, Seconds(4 * 3600)]
UpTo24h = Annotated[float, Seconds(24 * 3600)]
ZeroTo1h = Annotated[float, Seconds(3600, 0)]
ZeroTo4h = Annotated[float, Seconds(4 * 3600, 0)]
ZeroTo24h = Annotated[float, Seconds(24 * 3600, 0)]
ZeroTo7d = Annotated[float, Seconds(7 * 24 * 3600, 0)]
Size = Annotated[int, Bytes()]
Count = Annotated[int, Field(ge=0), NO_BOOLEAN]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN]
Share = Annotated[float, Field(ge=0, le=1), NO_BOOLEAN]
LoadFactor = Annotated[float, Field(ge=1, le=100), NO_BOOLEAN]
PositiveCount = Annotated[int, Field(ge=1), NO_BOOLEAN]
ServerAddress = Annotated[
    str,
    AfterValidator(_address),
    WithJsonSchema({"type": "string", "pattern": r"^\S+:\d{1,5}$"}),
    Words("`host:port`"),
]
PeerAddress = Annotated[
    str,
    AfterValidator(_peer_address),
    WithJsonSchema({"type": "string", "pattern": r"^\S+:\d{1,5}$"}),
    Words("`host:port`"),
]
HttpUrl = Annotated[
    str,
    AfterValidator(units.http_url),
    WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s?#@]+$"}),
    Words("http or https URL"),
]
ProviderName = Annotated[str, AfterValidator(_provider_name), Words("name of letters, digits, `.`, `_` and `-`")]
ModelName = Annotated[str, AfterValidator(_model_name), Words("model's name")]
HeaderName = Annotated[str, AfterValidator(_header_name), Words("header's name")]
HeaderValue = Annotated[SecretStr, AfterValidator(_header_value)]
Key = Annotated[SecretStr | None, AfterValidator(_key)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key), Words("key of 16 to 256 printable ASCII characters")]
Text = Annotated[str, Field(min_length=1)]
Word = Annotated[Text, AfterValidator(_word)]
HostName = Annotated[str, AfterValidator(units.host_name), Words("host's name, without a port")]
WebOrigin = Annotated[
    str,
    AfterValidator(units.origin),
    WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s/?#@]+$"}),
    Words("origin, as `https://app.example.com`"),
]
IpRange = Annotated[str, AfterValidator(units.ip_range), Words("IP address, or network as 10.0.0.0/8")]


class Section(BaseModel):
    """What all parts of the configuration share: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
