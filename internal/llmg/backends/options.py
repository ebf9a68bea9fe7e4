"""`ModelOptions.Options`: the engine's own settings, as `key:value` entries."""

from __future__ import annotations

from collections.abc import Iterable


def parse(entries: Iterable[str]) -> dict[str, str]:
    """`["--Flash-Attn: on", "verbose"]` -> `{"flash_attn": "on", "verbose": ""}`.

    Split at the first colon; keys lose leading dashes, are lower case and have `_` for `-`; the last of equals wins.
    """
    pairs = (entry.partition(":") for entry in entries)
    return {key.strip().lstrip("-").lower().replace("-", "_"): value.strip() for key, _, value in pairs}
