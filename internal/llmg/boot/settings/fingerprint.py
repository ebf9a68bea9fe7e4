"""A short name for what a piece of the configuration says."""

from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, SecretStr

_SIZE = 16  # bytes


def fingerprint(*values: Any) -> bytes:
    """The same for the same sections and values alone, however they came about. It gives no secret away."""
    return blake2b(repr([_plain(value) for value in values]).encode(), digest_size=_SIZE).digest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return type(value).__name__, [(name, _plain(field)) for name, field in value]
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.get_secret_value() if isinstance(value, SecretStr) else value
