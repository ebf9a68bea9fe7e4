"""What the protos say about themselves: Python's descriptors leave it out, so it is generated beside them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

import msgspec

Comments = Mapping[str, str]  # by full name; an enum's value: the enum's full name, a dot, its own
NONE: Final[Comments] = {}


def comments(*packages: str) -> Comments:
    """Those of these generated packages (`llmg.gatewayapi.v1`)."""
    found: dict[str, str] = {}
    for package in packages:
        found |= msgspec.json.decode((files(package) / "comments.json").read_bytes(), type=dict[str, str])
    return found
