"""Scalars that GraphQL lacks."""

from __future__ import annotations

import base64
from typing import Any, Final, NewType

import strawberry
from strawberry.scalars import Base64
from strawberry.types.scalar import ScalarDefinition

Int64 = NewType("Int64", int)


def _int64(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError("Int64 must be a whole number of 64 bits")
    return value


def _base64(value: Any) -> Base64:
    if not isinstance(value, str):
        raise ValueError("Base64 must be a string")
    return Base64(base64.b64decode(value, validate=True))


SCALARS: Final[dict[object, ScalarDefinition]] = {
    Int64: strawberry.scalar(
        name="Int64",
        description="A whole number of 64 bits, as a number in JSON.",
        serialize=_int64,
        parse_value=_int64,
    ),
    Base64: strawberry.scalar(
        name="Base64",
        description="Bytes, in the standard alphabet of RFC 4648, section 4, with padding.",
        serialize=lambda value: base64.b64encode(value).decode(),
        parse_value=_base64,
    ),
}
