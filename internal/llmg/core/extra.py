"""What an upstream says beyond what we have names for."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType


class Extra(Struct, frozen=True, kw_only=True):
    """Fields that the upstream sent and we have no name for, by where they stood in its dialect.

    `envelope`: around the choices; `choice`: in the choice; `item`: in the message, or in the thing that the event
    or part is (a tool call, the usage).
    """

    dialect: str
    envelope: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    item: dict[str, Any] = {}


def merge(first: Extra | UnsetType, second: Extra | UnsetType) -> Extra | UnsetType:
    """Both, field by field; the second wins."""
    if first is UNSET or second is UNSET:
        return first if second is UNSET else second
    return Extra(
        dialect=second.dialect,
        envelope={**first.envelope, **second.envelope},
        choice={**first.choice, **second.choice},
        item={**first.item, **second.item},
    )
