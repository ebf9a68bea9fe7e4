"""What values of the configuration may be: durations, sizes, names, addresses. Each field's section is a `Section`."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

from llmg.boot.settings import units
from llmg.boot.settings.problems import Expected

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


NO_BOOLEAN = BeforeValidator(_no_boolean)
LOWER = BeforeValidator(_lower)
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
Count = Annotated[int, Field(ge=0), NO_BOOLEAN]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN]
Share = Annotated[float, Field(ge=0, le=1), NO_BOOLEAN]
LoadFactor = Annotated[float, Field(ge=1, allow_inf_nan=False), NO_BOOLEAN]
PositiveCount = Annotated[int, Field(ge=1), NO_BOOLEAN]
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
Word = Annotated[Text, AfterValidator(_word)]
HostName = Annotated[str, AfterValidator(units.host_name)]
WebOrigin = Annotated[
    str, AfterValidator(units.origin), WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s/?#@]+$"})
]
IpRange = Annotated[str, AfterValidator(units.ip_range)]


class Section(BaseModel):
    """What all parts of the configuration share: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
