"""What an answer cost, in tokens."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from llmg.core.extra import Extra

Source = Literal["upstream", "estimated"]


class Usage(Struct, frozen=True, kw_only=True, tag="usage"):
    """Tokens of one answer so far: an event, and part of an answer. Cumulative; one final value a stream.

    The details are parts of their totals (cached of input, reasoning of output), never in addition to them.
    `extra` holds what else the upstream said of it (a price, say) and around it, by its own names.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    final: bool = True
    source: Source = "upstream"
    extra: Extra | UnsetType = UNSET

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens
