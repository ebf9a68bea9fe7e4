"""Keys: who has one is let in, by whichever header; what operators need stays open."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from llmg.core.context import ANONYMOUS, Principal
from llmg.core.errors import Failure, Kind
from llmg.routing.catalog import EVERYBODY, Catalog, Key
from llmg.services.admission import Authenticator, bearer, digest
from llmg.testing.clocks import FakeClock
from llmg.testing.scripted import Scripted, saying
from support.doors import admission, rest_door
from support.gateway import chat

KEY, OTHER = "key-" + "a" * 20, "key-" + "b" * 20
KEYS = {"app": KEY, "batch": OTHER}


@pytest.mark.parametrize(
    ("authorization", "api_key", "key"),
    [
        (None, None, None),
        ("Bearer k", None, "k"),
        ("bearer  k ", None, "k"),
        (None, "k", "k"),
        ("Bearer k", "other", "k"),
        ("Bearer ", "k", "k"),
        ("Basic dTpw", None, None),
        ("Basic dTpw", "k", "k"),
        ("Bearer", None, None),
    ],
)
def test_where_a_key_stands(authorization: str | None, api_key: str | None, key: str | None) -> None:
    assert bearer(authorization, api_key) == key


def test_each_key_is_somebodys() -> None:
    let_in = admission(KEYS)
    assert let_in.principal(f"Bearer {KEY}", None).key_id == "app"
    assert let_in.principal(None, OTHER).key_id == "batch"
    for wrong in (None, "", KEY[:-1], KEY + "a", "\udcff"):
        with pytest.raises(Failure) as caught:
            let_in.principal(None, wrong)
        assert caught.value.kind is Kind.UNAUTHENTICATED
        assert KEY not in caught.value.message


def test_without_keys_everybody_is_nobody() -> None:
    assert admission().principal(None, None) is ANONYMOUS
    assert admission().principal(None, "whatever") is ANONYMOUS


def test_the_catalog_may_be_exchanged_at_any_time() -> None:
    known = Catalog(keys={digest(KEY): Key(Principal(key_id="app"))})
    catalogs = iter([known, Catalog(), EVERYBODY])
    keys = Authenticator(lambda: next(catalogs), FakeClock())
    assert keys.authenticate(KEY).key_id == "app"
    with pytest.raises(Failure, match="not valid"):
        keys.authenticate(KEY)
    assert keys.authenticate(KEY) is ANONYMOUS


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-Api-Key": KEY}, {"x-api-key": OTHER}])
async def test_a_key_opens(headers: Mapping[str, str]) -> None:
    async with rest_door(Scripted(saying("hi")), keys=KEYS) as gateway:
        assert (await gateway.post("/v1/chat/completions", chat(), headers)).status == 200
        assert (await gateway.ask("GET", "/v1/models", headers=headers)).status == 200
        assert (await gateway.ask("GET", "/v1/models/a", headers=headers)).status == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nonsense"}, {"X-Api-Key": KEY.upper()}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/a"),
    ],
)
async def test_nothing_else_does(headers: Mapping[str, str], method: str, path: str) -> None:
    provider = Scripted(saying("hi"))
    async with rest_door(provider, keys=KEYS) as gateway:
        refused = await gateway.ask(method, path, b"not even JSON", headers)
        assert refused.status == 401
        assert refused.error["code"] == "unauthenticated"
        assert refused.headers["www-authenticate"] == "Bearer"
    assert provider.calls == []


async def test_what_operators_need_is_open() -> None:
    async with rest_door(Scripted([]), keys=KEYS) as gateway:
        for path in ("/healthz", "/readyz", "/version"):
            assert (await gateway.ask("GET", path)).status == 200
