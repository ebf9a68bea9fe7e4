"""The examples of docs/client.md, run as they stand there, but for the address."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmg import client
from llmg.core.errors import Kind
from support.gateway import Process, process

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
EXAMPLES = [
    (section.partition("\n")[0], script)
    for section in TEXT.split("\n## ")
    for script in re.findall(r"^```python\n(.*?)^```$", section, flags=re.M | re.S)
]
ECHO = {
    "providers": {"echo": {"kind": "echo"}},
    "models": {"smollm2": {"targets": [{"provider": "echo", "model": "m"}]}},
}
SAID = {
    "Ask": r"Name three colours\.\nSTOP Usage\(.*\) echo/m req_\w+\n",
    "Stream": r"Name three colours\. Usage\(.*\) echo/m\n(TEXT '.*'\n)+STOP\n",
    "Tools": r"What time is it in Bern\?\n",
    "Which way it went": r"1 echo/m share 1\.000, credit 1: the highest is next\n",
    "Vectors and models": r"2 vectors\nsmollm2 \[.*\]\n",
    "Errors": r"model_not_found chat\.model the model 'no-such-model' does not exist\n",
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(tmp_path_factory.mktemp("gateway"), ECHO) as running:
        yield running


@pytest.mark.parametrize(("name", "script"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_an_example(gateway: Process, name: str, script: str) -> None:
    assert script.count("127.0.0.1:8081") == 1
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script.replace("127.0.0.1:8081", gateway.grpc_address)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SAID[name], done.stdout), done.stdout


def test_there_is_an_expectation_for_each() -> None:
    assert [name for name, _ in EXAMPLES] == list(SAID)


def test_the_table_of_errors_is_whole() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", TEXT, flags=re.M))
    assert set(rows) | {"LlmgError"} == {name for name in client.__all__ if name.endswith("Error")}
    kinds = [kind for row in rows.values() for kind in re.findall(r"`(\w+)`", row)]
    assert sorted(kinds) == sorted([*(kind.value for kind in Kind), "unavailable"])
