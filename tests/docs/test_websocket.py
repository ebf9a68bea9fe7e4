"""The WebSocket protocol's documents say what the code does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator

from llmg.doors.websocket.asyncapi import EXAMPLES, document
from llmg.wire import websocket as wire

DOCS = Path(__file__).parents[2] / "docs"
ASYNCAPI: dict[str, Any] = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
PAGE = (DOCS / "websocket.md").read_text()
CLIENT = {kind.__struct_config__.tag for kind in get_args(wire.ClientFrame)}
SERVER = {kind.__struct_config__.tag for kind in get_args(wire.ServerFrame)}

_client_frame = msgspec.json.Decoder(wire.ClientFrame).decode
_server_frame = msgspec.json.Decoder(wire.ServerFrame).decode


def names(operation: str) -> set[str]:
    """The messages of an operation."""
    return {message["$ref"].rpartition("/")[2] for message in ASYNCAPI["operations"][operation]["messages"]}


def test_it_is_current() -> None:
    said = subprocess.run([sys.executable, "-m", "llmg.doors.websocket"], capture_output=True, text=True, check=True)
    assert said.stdout == (DOCS / "asyncapi.yaml").read_text()
    assert document() == ASYNCAPI


def test_every_frame_is_described() -> None:
    assert names("hear") == CLIENT
    assert names("tell") == SERVER
    assert set(ASYNCAPI["components"]["messages"]) == set(ASYNCAPI["channels"]["socket"]["messages"]) == CLIENT | SERVER
    described = {
        schema["properties"]["type"]["enum"][0]
        for schema in ASYNCAPI["components"]["schemas"].values()
        if "type" in schema.get("properties", {})
    }
    assert described == CLIENT | SERVER | {kind.__struct_config__.tag for kind in get_args(wire.AnyEvent)}


def test_every_close_code_is_described() -> None:
    table = {int(code): meaning for code, meaning in wire.CLOSES.items()}
    assert {row["code"]: row["meaning"] for row in ASYNCAPI["x-close-codes"]} == table
    rows = re.findall(r"^\| (\d{4}) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == table


def test_every_reference_leads_somewhere() -> None:
    for path in set(re.findall(r"#/[\w./-]+", json.dumps(ASYNCAPI))):
        found: Any = ASYNCAPI
        for step in path.split("/")[1:]:
            found = found[step]
        assert found


@pytest.mark.parametrize("name", sorted(CLIENT | SERVER))
def test_examples_are_frames(name: str) -> None:
    for example in ASYNCAPI["components"]["messages"][name]["examples"]:
        payload = example["payload"]
        assert payload == EXAMPLES[name]
        assert payload["type"] == name
        schema = {**ASYNCAPI["components"]["messages"][name]["payload"], "components": ASYNCAPI["components"]}
        Draft202012Validator(schema).validate(payload)
        data = json.dumps(payload).encode()
        frame: Any = _client_frame(data) if name in CLIENT else _server_frame(data)
        assert type(frame).__struct_config__.tag == name
        if isinstance(frame, wire.Start):
            assert wire.decode_request(frame).model == payload["request"]["model"]


def test_the_page_tells_of_every_frame_and_its_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", PAGE, re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    kinds = [*get_args(wire.ClientFrame), *get_args(wire.ServerFrame)]
    assert told == {kind.__struct_config__.tag: set(kind.__struct_fields__) for kind in kinds}


def test_the_page_shows_frames_that_are_some() -> None:
    shown = re.findall(r"^(->|<-) (.*)$", PAGE, re.MULTILINE)
    assert len(shown) == 7
    for direction, text in shown:
        whole = re.sub(r'"started",\.\.\.', '"started","id":"1","created":1,"model":"m"', text).encode()
        assert _client_frame(whole) if direction == "->" else _server_frame(whole)
