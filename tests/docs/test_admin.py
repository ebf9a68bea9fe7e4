"""docs/admin.md: the configuration loads, its commands run as they stand there, what it names is there."""

from __future__ import annotations

import asyncio
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from graphql import parse, validate
from strawberry.schema.config import StrawberryConfig
from typer.testing import CliRunner

from llmg.boot.cli import app
from llmg.doors.graphql.admin import AdminMutation, AdminQuery
from llmg.doors.graphql.scalars import SCALARS
from llmg.doors.graphql.schema import Schema
from llmg.gatewayapi.v1 import admin_pb2
from llmg.stores.catalog_file import EDIT, FileCatalog
from support.gateway import in_process
from support.http import PATIENCE

TEXT = (Path(__file__).parents[2] / "docs" / "admin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.M | re.S)
OPS = "ops-key-0123456789"
SECRETS = ("sk-of-acme", OPS)


def blocks(language: str) -> list[str]:
    """All of that language."""
    return [text for kind, text in BLOCKS if kind == language]


def configuration(directory: Path) -> dict[str, Any]:
    """The document's, with its variables filled in."""
    text = blocks("yaml")[0].replace("${OPS_KEY}", OPS).replace("${OPENAI_API_KEY:-}", "")
    config: dict[str, Any] = yaml.safe_load(text)
    config["catalog"]["file"] = directory / config["catalog"]["file"]
    return config


async def test_its_commands_run_one_after_the_other(tmp_path: Path) -> None:
    script = "".join(block for block in blocks("shell") if "curl " in block and "grpcurl" not in block)
    async with in_process(configuration(tmp_path)) as gateway:
        address = "{}:{}".format(*gateway.address)
        running = await asyncio.create_subprocess_exec(
            "bash",
            "-euc",
            script.replace("127.0.0.1:8080", address),
            env={"OPS_KEY": OPS, "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE):
            said, told = await running.communicate()
    assert running.returncode == 0, told.decode()
    answers = said.decode()
    assert not any(secret in answers for secret in SECRETS)
    assert "llmg_" in answers
    held = await FileCatalog(tmp_path / "catalog.yaml").load()
    acme = held.tenants["acme"]
    assert acme["labels"] == {"env": "test"}
    assert acme["upstreams"] == {"openai": {"api_key": "sk-of-acme", "headers": {"x-team": "acme"}}}
    assert "limits" not in acme
    keys = acme["teams"]["search"]["groups"]["prod"]["endpoints"]["web"]["keys"]
    assert [(key["id"], key.get("revoked", False)) for key in keys] == [("k2", False)]
    assert list(held.tenants) == ["acme"]
    assert answers.count('"alias":"web"') == 3  # when it was made, found by that, and listed


def test_the_graphql_is_right() -> None:
    schema = Schema(AdminQuery, AdminMutation, config=StrawberryConfig(scalar_map=SCALARS))
    [example] = blocks("graphql")
    assert validate(schema._schema, parse(example)) == []
    for name in (*schema._schema.query_type.fields, *schema._schema.mutation_type.fields):  # type: ignore[union-attr]
        assert f"`{name}`" in TEXT


@pytest.mark.parametrize("command", re.findall(r"^llmg (.*)$", "".join(blocks("shell")), flags=re.M))
def test_the_command_line_has_what_it_names(command: str) -> None:
    group, name, *_ = command.split()
    shown = CliRunner().invoke(app, [group, name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert all(option in shown.stdout for option in re.findall(r"(?<!\S)--?\w+", command))


def test_what_it_says_of_keys_and_files() -> None:
    made = CliRunner().invoke(app, ["catalog", "new-key"]).stdout
    key, digest_ = re.findall(r": +(\S+)", made)
    assert sha256(key.encode()).hexdigest() == digest_
    assert f"`{EDIT}`" in TEXT
    assert "AdminService` in [admin.proto]" in TEXT
    assert admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name in TEXT
