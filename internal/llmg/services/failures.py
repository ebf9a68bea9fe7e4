"""What every door writes down of a failure."""

from __future__ import annotations

from typing import Any

from llmg.core.errors import Failure, Kind


def log_failure(log: Any, failure: Failure, request_id: str) -> None:
    """To a structlog logger, what the client is not told; nothing of what is its own doing, or was logged before."""
    if failure.logged or (failure.detail is None and failure.blame == "caller"):
        return
    level = log.error if failure.kind is Kind.INTERNAL else log.warning
    level(failure.message, kind=failure.kind.value, request_id=request_id, detail=failure.detail)
