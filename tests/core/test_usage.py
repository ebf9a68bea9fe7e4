"""Token counts."""

from __future__ import annotations

from llmg.core.usage import Usage


def test_total_is_in_and_out_and_details_are_parts_of_them() -> None:
    assert Usage(input_tokens=5, output_tokens=7, cached_tokens=4, reasoning_tokens=6).total_tokens == 12
