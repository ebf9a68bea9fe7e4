"""schemathesis: requests good and bad, made from the REST gateway's OpenAPI document and from GraphQL's schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool

from judges.methods import EXAMPLES
from judges.programs import HERE, KEY, TOOLS, run
from llmg.doors.grpc.server import SERVICES
from llmg.wire.transcoding.bindings import ANY, bindings
from support.gateway import Process

SCHEMATHESIS = TOOLS / "venv" / "bin" / "schemathesis"
MINUTES = 60.0
# What is made up names no level that is there, as the names of levels have slashes in them; and it deletes some.
OF_THE_CATALOG = ("/api/v1/tenants", "/api/v1/aliases", "/api/v1/auditEntries")
BINDINGS = bindings(descriptor_pool.Default().FindServiceByName(name) for name in SERVICES)


def example(operation_id: str) -> Any:
    """The body of an operation's good request."""
    [(method, given)] = [(name, one) for name, one in EXAMPLES.items() if name.endswith(f"/{operation_id}")]
    body = next(binding.body for binding in BINDINGS if binding.path == f"/{method}")
    return given.request if body == ANY else given.request[body]


def with_examples(document: Any) -> Any:
    """The document, with an example for each body: what is made up seldom is good in every way."""
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        if "requestBody" in operation:
            operation["requestBody"]["content"]["application/json"]["example"] = example(operation["operationId"])
    return document


async def judge(gateway: Process, directory: Path, location: str, *flags: str) -> Any:
    """Its report, where it found nothing; neither did we: no error is in the gateway's log."""
    ended = await run(
        *("env", f"SCHEMATHESIS_HOOKS={HERE / 'hooks.py'}"),
        *(str(SCHEMATHESIS), "--config-file", str(HERE / "schemathesis.toml"), "run", location, *flags),
        *("--header", f"Authorization: Bearer {KEY}", "--report", "json", "--report-json-path", "report.json"),
        directory=directory,
        patience=9 * MINUTES,
    )
    assert ended.code == 0, ended.out
    assert '"level": "error"' not in gateway.said
    report = json.loads((directory / "report.json").read_text())
    assert (report["failures"], report["errors"], report["complete"]) == ([], [], True)
    assert report["operations"]["tested"] == report["operations"]["total"]
    return report


@pytest.mark.timeout(600)
async def test_the_rest_gateway(served: Process, tmp_path: Path) -> None:
    document = with_examples((await served.ask("GET", "/openapi.json")).json())
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    report = await judge(served, tmp_path, "openapi.json", "--url", "http://{}:{}".format(*served.address))
    assert report["operations"]["total"] == len(BINDINGS)
    for operation, phases in report["valid_rates"].items():
        if any(path in operation for path in OF_THE_CATALOG):
            continue
        assert sum(rate["accepted"] for rate in phases.values()) > 0, f"no good request to {operation}"


@pytest.mark.timeout(600)
async def test_graphql(served: Process, tmp_path: Path) -> None:
    url = "http://{}:{}/graphql".format(*served.address)
    # To it any error is the server's: we look for those in the log.
    report = await judge(served, tmp_path, url, "--checks", "response_schema_conformance")
    assert report["test_cases"]["generated"] > 100
