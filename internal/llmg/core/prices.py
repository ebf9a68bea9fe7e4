"""What tokens cost."""

from __future__ import annotations

from msgspec import Struct


class Price(Struct, frozen=True, kw_only=True):
    """USD per million tokens."""

    input: float
    output: float
