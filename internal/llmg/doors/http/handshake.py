"""What doors with WebSockets do alike before they accept one: who asks?"""

from __future__ import annotations

from starlette.types import Scope

from llmg.core.context import Principal
from llmg.core.errors import Failure
from llmg.services.admission import Admission, bearer


def principal_of(scope: Scope, admission: Admission) -> Principal | None:
    """Who shows these headers; None: a key is needed, and there was none, so that it has to come in a first message.

    (Browsers can't set headers of a WebSocket.) Raises Failure (unauthenticated) for a key that is wrong.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    authorization, api_key = headers.get(b"authorization"), headers.get(b"x-api-key")
    try:
        return admission.principal(authorization, api_key)
    except Failure:
        if bearer(authorization, api_key):
            raise
        return None
