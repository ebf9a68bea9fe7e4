"""npm graphql-http's audits: GraphQL over HTTP, as its specification has it."""

from __future__ import annotations

from collections import Counter

from judges.programs import KEY, node
from support.gateway import ECHO, in_process

AUDITS = {"MUST": 13, "SHOULD": 23, "MAY": 25}


async def test_graphql_over_http() -> None:
    async with in_process({**ECHO, "keys": {"judges": KEY}}) as gateway:
        url = "http://{}:{}/graphql".format(*gateway.address)
        async with node("audits.mjs", url, f"Bearer {KEY}") as script:
            audits = await script.result()
    assert [audit for audit in audits if audit["status"] != "ok"] == []
    assert Counter(audit["name"].split()[0] for audit in audits) == AUDITS
