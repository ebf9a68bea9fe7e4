"""A short name for what a piece of the configuration says."""

from functools import cache
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, SecretStr

_SIZE = 16  # bytes


def fingerprint(*values: Any) -> bytes:
    """The same for the same sections and values alone, however they came about. It gives no secret away."""
    return blake2b(repr([_plain(value) for value in values]).encode(), digest_size=_SIZE).digest()


def _plain(value: Any) -> Any:
    """Of sections only what is not as it would be if nothing were said: that is most of most of them."""
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return _plain_section(value) if isinstance(value, BaseModel) else value


def _plain_section(section: BaseModel) -> Any:
    found = [(name, getattr(section, name), default) for name, default in _defaults(type(section))]
    said = [(name, _plain(value)) for name, value, default in found if value is not default and value != default]
    return type(section).__name__, said


@cache
def _defaults(kind: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(name, field.default) for name, field in kind.model_fields.items()]
