"""What is logged of attempts: each target that failed, also where another answered in its place."""

from __future__ import annotations

import structlog

from llmg.core.context import Attempt, Context, Observer
from llmg.core.errors import Kind

log = structlog.get_logger("llmg.attempts")


class LogObserver(Observer):
    """Logs failed attempts, but those that are the caller's own doing."""

    def attempt_ended(self, context: Context, attempt: Attempt) -> None:
        """See Observer."""
        failure = attempt.failure
        if failure is None or (failure.blame == "caller" and failure.detail is None):
            return
        failure.logged = True
        level = log.error if failure.kind is Kind.INTERNAL else log.warning
        level(
            failure.message,
            kind=failure.kind.value,
            route=attempt.route,
            attempt=len(context.trail),
            request_id=context.request_id,
            detail=failure.detail,
        )
