"""docs/grouping.md: its example loads and does what is said of it, and it names everything that a level may say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmg.boot import build
from llmg.boot.current import Current
from llmg.boot.reload import CHANGE
from llmg.boot.settings import load
from llmg.boot.settings.catalog import EndpointKey, Level, Upstream
from llmg.core.errors import Failure
from llmg.providers.http import Transport
from llmg.services.admission import Authenticator
from llmg.testing.clocks import FakeClock

TEXT = (Path(__file__).parents[2] / "docs" / "grouping.md").read_text(encoding="utf-8")
KEYS, EXAMPLE = re.findall(r"^```yaml\n(.*?)^```$", TEXT, flags=re.M | re.S)
SECRET = "sk-" + "w" * 32
ENV = {"OPENAI_KEY": "root's", "ACME_OPENAI_KEY": "acme's", "WEB_KEY": SECRET, "MY_APP_KEY": SECRET}


@pytest.fixture
def now(tmp_path: Path) -> Current:
    file = tmp_path / "config.yaml"
    file.write_text(EXAMPLE)
    return Current(build.Needs(load(file, env=ENV), Transport()), FakeClock())


def test_the_list_of_keys_loads(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(KEYS)
    assert load(file, env=ENV).keys["my-app"].get_secret_value() == SECRET


def test_the_example_does_what_is_said(now: Current) -> None:
    principal = Authenticator(lambda: now.catalog, FakeClock()).authenticate(SECRET)
    assert (principal.tenant, principal.team, principal.endpoint, principal.key_id) == (
        "acme",
        "search",
        "web",
        "2026-b",
    )
    assert dict(principal.levels[-1].labels) == {"plan": "gold", "env": "prod"}
    assert [level.limits.concurrent for level in principal.levels if level.limits.concurrent] == [20, 10]
    scope = principal.scope
    assert [target.model for target in scope.find("fast").targets] == ["smollm2"]
    assert [(target.model, target.weight) for target in scope.find("large").targets] == [
        ("gpt-5", 3.0),
        ("smollm2", 1.0),
    ]
    assert sorted(group.name for group in scope.declared()) == ["fast", "large"]
    for name in ("small", "careful", "openai/gpt-5-mini", "openai/gpt-5"):
        with pytest.raises(Failure, match="does not exist"):
            scope.find(name)
    assert now.catalog.by_alias["acme-web"].name == "tenants/acme/teams/search/groups/prod/endpoints/web"


@pytest.mark.parametrize("name", [*Level.model_fields, *Upstream.model_fields, *EndpointKey.model_fields, "alias"])
def test_everything_is_named(name: str) -> None:
    assert re.search(rf"`{name}`|\b{name}:", TEXT)


def test_what_may_change_is_named() -> None:
    assert {"keys", "tenants", "limits", "labels", "providers", "models"} <= set(CHANGE)
