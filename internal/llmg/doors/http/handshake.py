"""What doors with WebSockets do alike before they accept one: which key does it show?"""

from __future__ import annotations

from msgspec import Struct
from starlette.types import Scope

from llmg.core.context import Principal
from llmg.core.errors import Failure
from llmg.services.admission import Admission, bearer


class Shown(Struct, frozen=True):
    """What a connection has shown of a key. Whose it is has to be asked for each request: connections last for days,
    and meanwhile the key may expire, be revoked, or get other rights."""

    authorization: str | None = None
    api_key: str | None = None

    def principal(self, admission: Admission) -> Principal:
        """Whose it is now. Raises Failure (unauthenticated)."""
        return admission.principal(self.authorization, self.api_key)


def shown_by(scope: Scope, admission: Admission) -> Shown | None:
    """By these headers; None: a key is needed, and there was none, so that it has to come in a first message.

    (Browsers can't set headers of a WebSocket.) Raises Failure (unauthenticated) for a key that is wrong.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    shown = Shown(headers.get(b"authorization"), headers.get(b"x-api-key"))
    try:
        shown.principal(admission)
    except Failure:
        if bearer(shown.authorization, shown.api_key):
            raise
        return None
    return shown
