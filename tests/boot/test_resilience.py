"""From settings to health, checks, queues, retries, hedges and fallbacks, and what of it is seen at the doors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from random import Random as Dice
from typing import Any

import pytest
import structlog
import structlog.testing
from pydantic import ValidationError

from llmg.boot import build, checks, resilience
from llmg.boot.checks import Checks
from llmg.boot.current import Current
from llmg.boot.scopes import LevelScope
from llmg.boot.settings import Settings
from llmg.boot.settings.hedging import Hedge
from llmg.boot.settings.models import Retries
from llmg.boot.settings.providers import (
    BackendProvider,
    Breaker,
    EchoProvider,
    HealthCheck,
    OpenAIProvider,
    Provider,
    Resilience,
)
from llmg.core.errors import Failure, Kind
from llmg.providers.http import Transport
from llmg.routing.breaker import State
from llmg.routing.health import Health
from llmg.routing.models import Target
from llmg.routing.probes import Check, Limits
from llmg.routing.queue import Queued
from llmg.services.admission import digest
from llmg.testing.clocks import FakeClock
from support.gateway import in_process
from support.http import PATIENCE, Response
from support.scopes import root_models
from support.upstream import (
    ANSWER,
    KEY,
    Act,
    Call,
    Upstream,
    answering,
    chunk,
    good,
    stall,
    stall_after_head,
    upstream,
    words,
)

UP = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
NOW = 1000.0
FAULT = Failure(Kind.UPSTREAM_ERROR, "words")


def _target(**fields: Any) -> dict[str, Any]:
    return {"targets": [{"provider": "up", "model": "theirs"}], **fields}


def _models(models: dict[str, Any], **provider: Any) -> LevelScope:
    config: dict[str, Any] = {"providers": {"up": {**UP, **provider}}, "models": models}
    return root_models(config)


def _only(models: LevelScope, name: str) -> Target:
    (target,) = models.find(name).targets
    return target


def _state(config: Resilience) -> resilience.State:
    return resilience.make_state(config, "up", "theirs")


@pytest.mark.parametrize(
    ("breaker", "outcomes", "state"),
    [
        ({"consecutive": 3}, "--", State.CLOSED),
        ({"consecutive": 3}, "---", State.OPEN),
        ({"consecutive": 3, "enabled": False}, "---", State.CLOSED),
        ({"failure_ratio": 0.2, "min_calls": 5}, "++++-", State.OPEN),
        ({"failure_ratio": 0.3, "min_calls": 5}, "++++-", State.CLOSED),
        ({"failure_ratio": 0.2, "min_calls": 6}, "++++-", State.CLOSED),
        ({"failure_ratio": 0.2, "min_calls": 5, "window": 3.0}, "++++-", State.CLOSED),  # a second for each call
    ],
)
def test_what_opens_a_circuit(breaker: dict[str, Any], outcomes: str, state: State) -> None:
    health = _state(Resilience(breaker=Breaker(**breaker))).health
    for second, outcome in enumerate(outcomes):
        health.ended(health.begin(), NOW + second, None if outcome == "+" else FAULT)
    assert health.breaker.state is state


def test_for_how_long_and_how_many_try_then() -> None:
    config = Resilience(breaker=Breaker(consecutive=1, open_for=7.0, probes=2))
    health = _state(config).health
    health.ended(health.begin(), NOW, FAULT)
    assert (health.fit(NOW + 6.9), health.fit(NOW + 7)) == (False, True)
    fit = []
    for _ in range(2):
        health.begin()
        fit.append(health.fit(NOW + 7))
    assert fit == [True, False]


def test_the_longest_cooldown() -> None:
    health = _state(Resilience(max_cooldown=3.0)).health
    health.ended(health.begin(), NOW, Failure(Kind.UPSTREAM_RATE_LIMITED, "words", retry_after=60.0))
    assert (health.fit(NOW + 2.9), health.fit(NOW + 3)) == (False, True)


OPENED = "the target fails, and is left alone: its circuit is open"
TRIED = "the target may be tried out: its circuit is half-open"
CLOSED = "the target answers again: its circuit is closed"
COOLS = "the target asked to be left alone"
SECRET = Failure(Kind.UPSTREAM_ERROR, "words", detail="sk-secret")


def _logged(level: int = logging.INFO) -> list[dict[str, Any]]:
    """What is said of a target that fails again and again, comes back, and then wants to be left alone."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    try:
        with structlog.testing.capture_logs() as entries:
            _an_outage(_state(Resilience(breaker=Breaker(consecutive=2, open_for=5.0))).health)
    finally:
        structlog.reset_defaults()
    return [{**entry} for entry in entries]


def _an_outage(health: Health) -> None:
    for second in range(9):  # asked all the same, as there is no other
        health.ended(health.begin(), NOW + second, SECRET)
    health.ended(health.begin(), NOW + 10, None)
    for _ in range(3):
        ticket = health.begin()
        health.ended(ticket, NOW + 20, Failure(Kind.UPSTREAM_RATE_LIMITED, "slow down", retry_after=7.0))


def test_each_change_of_a_target_is_logged_once() -> None:
    of = {"provider": "up", "model": "theirs"}
    failed = {"kind": "upstream_error", "reason": "words"}
    cooled = {"kind": "upstream_rate_limited", "reason": "slow down"}
    assert _logged() == [
        {"event": OPENED, "log_level": "warning", "again_in": 5.0, **of, **failed},
        {"event": TRIED, "log_level": "info", **of},
        {"event": CLOSED, "log_level": "info", **of},
        {"event": COOLS, "log_level": "info", "again_in": 7.0, **of, **cooled},
    ]


def test_what_repeats_itself_is_for_those_who_look_closely() -> None:
    words = [entry["event"] for entry in _logged(logging.DEBUG)]
    assert words == [*([OPENED, TRIED] * 8), CLOSED, COOLS]


async def test_that_an_upstream_fails_its_checks_is_logged_once() -> None:
    left, enough = iter([False] * 3 + [True] * 3), asyncio.Event()

    async def probe() -> None:
        well = next(left, None)
        if well is None:
            enough.set()
        elif not well:
            raise Failure(Kind.UPSTREAM_UNAVAILABLE, "words")

    prober = resilience.make_prober(Dice(3))
    prober.watch([Check(name="up", of=1, probe=probe, limits=Limits(interval=0.001), healths=(Health(),))])
    with structlog.testing.capture_logs() as entries:
        prober.start()
        async with asyncio.timeout(PATIENCE):
            await enough.wait()
        await prober.aclose()
    assert [(entry["event"], entry["log_level"], entry["provider"]) for entry in entries] == [
        ("the upstream fails its health checks", "warning", "up"),
        ("the upstream passes its health checks again", "info", "up"),
    ]


def _hedge(**fields: Any) -> Hedge:
    return Hedge(**fields)


def test_hedges() -> None:
    assert resilience.make_hedges(None) is None
    given = resilience.make_hedges(_hedge(after="500ms", max=2, budget=1.0))
    assert given is not None
    assert given.after("any") == 0.5
    assert [given.take(0), given.take(1)] == [True, False]  # one is there at the start
    own = resilience.make_hedges(Hedge())
    assert own is not None
    assert own.after("any") is None


@pytest.mark.parametrize("after", ["p99", -1, True, "soon", None, []])
def test_what_is_no_time_to_hedge_after(after: object) -> None:
    with pytest.raises(ValidationError, match="expected p95, or a duration such as 500ms"):
        _hedge(after=after)


@pytest.mark.parametrize("after", ["0s", 0, 300, "61s"])
def test_what_is_too_soon_or_too_late_to_hedge_after(after: object) -> None:
    with pytest.raises(ValidationError, match="expected more than 0, up to 1m"):
        _hedge(after=after)


def _up(**fields: Any) -> OpenAIProvider:
    return OpenAIProvider(**{**UP, **fields})


def _check(config: Provider, health: Health) -> Check | None:
    return resilience.make_check("up", 1, config, [health], Transport(), None)


async def test_checks_only_where_they_are_asked_for() -> None:
    assert _check(EchoProvider(kind="echo"), Health()) is None
    assert _check(_up(), Health()) is None


async def test_a_check() -> None:
    own = {"interval": "7s", "timeout": "3s", "failures": 4, "passes": 5}
    health = Health()
    check = _check(_up(resilience={"health_check": own}), health)
    assert check is not None
    assert check.limits == Limits(interval=7.0, timeout=3.0, failures=4, passes=5)
    assert (check.name, check.healths) == ("up", (health,))


@pytest.mark.parametrize(("own", "path"), [({}, "/v1/models"), ({"path": "/health?deep=1"}, "/health?deep=1")])
async def test_what_is_fetched(own: dict[str, str], path: str) -> None:
    async with upstream(answering(200, {})) as server:
        given = {"api_key": KEY, "headers": {"x-team": "red"}, "organization": "org"}
        check = _check(_up(base_url=server.base_url, resilience={"health_check": own}, **given), Health())
        assert check is not None
        await check.probe()
    assert server.last.path == path
    sent = server.last.headers
    assert (sent["authorization"], sent["x-team"], sent["openai-organization"]) == (f"Bearer {KEY}", "red", "org")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "xllamacpp", "resilience": {"health_check": {}}}, "no `health_check` together with `engine`"),
        ({"address": "h:1", "resilience": {"health_check": {"path": "/x"}}}, "no `path` for the `health_check`"),
    ],
)
def test_checks_that_there_are_not(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        BackendProvider(kind="backend", **given)


@pytest.mark.parametrize("path", ["health", "/a b", "/a#b", "", "https://h/x"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValidationError, match="a path that begins with"):
        HealthCheck(path=path)


def test_retries() -> None:
    assert resilience.make_retries(Retries(max=0)) is None
    assert resilience.make_retries(Retries()) is not None


async def test_a_target_is_the_same_by_whatever_name() -> None:
    models = _models({"a": _target(), "b": _target()})
    assert _only(models, "a").health is _only(models, "b").health is _only(models, "up/theirs").health
    assert _only(models, "up/other").health is not _only(models, "a").health
    assert "other" not in str(models.declared())


async def test_what_differs_for_a_model_or_a_target_is_known_apart() -> None:
    own = {"max_in_flight": 1, "breaker": {"consecutive": 1, "probes": 2}}
    target = _target()
    target["targets"][0]["resilience"] = {"breaker": {"consecutive": 2}}
    models = _models(
        {
            "plain": _target(),
            "own": _target(resilience=own),
            "same": _target(resilience=own),
            "nearer": target | {"resilience": own},
        },
        resilience={"breaker": {"consecutive": 3}},
    )
    assert _only(models, "own").health is _only(models, "same").health
    assert isinstance(_only(models, "own").inner, Queued)
    assert not isinstance(_only(models, "plain").inner, Queued)
    assert len({id(_only(models, name).health) for name in ("plain", "own", "nearer")}) == 3
    opens = {name: _failures_until_open(_only(models, name).health) for name in ("plain", "own", "nearer")}
    assert opens == {"plain": 3, "own": 1, "nearer": 2}


def _failures_until_open(health: Health) -> int:
    count = 0
    while health.allowed(0.0):
        health.ended(health.begin(), 0.0, Failure(Kind.UPSTREAM_ERROR, "down"))
        count += 1
    return count


async def test_places_only_where_they_are_counted() -> None:
    counted = _only(_models({"m": _target()}, resilience={"max_in_flight": 1}), "m")
    assert isinstance(counted.inner, Queued)
    assert not isinstance(_only(_models({"m": _target()}), "m").inner, Queued)


async def test_fallbacks_and_theirs() -> None:
    names = {"m": ["a", "b"], "a": ["c", "up/x"], "b": ["c", "d"], "c": [], "d": []}
    models = _models({name: _target(fallbacks=fallbacks) for name, fallbacks in names.items()})
    assert models.find("m").fallbacks == ("a", "c", "up/x", "b", "d")
    assert models.find("c").fallbacks == ()


async def test_what_else_leads_to_fallbacks() -> None:
    models = _models({"m": _target(fallback_on=["content_filtered"])})
    assert models.find("m").fallback_on == {Kind.CONTENT_FILTERED}


# -- through the doors ----------------------------------------------------------------------------------------------


def _before(servers: Mapping[str, Upstream], **model: Any) -> dict[str, Any]:
    """The model `m` has all of them for targets, unless `targets` says which; each is a model of its own, too."""
    asked = {name: {"targets": [{"provider": name, "model": "theirs"}]} for name in servers}
    targets = [target for name in model.pop("targets", servers) for target in asked[name]["targets"]]
    return {
        "providers": {
            name: {"kind": "openai", "base_url": server.base_url, **model.pop(name, {})}
            for name, server in servers.items()
        },
        "models": {**asked, "m": {"policy": "round_robin", "targets": targets, **model}},
    }


def _route(answer: Response) -> tuple[int, str, str]:
    """Status, who answered, and how many were asked."""
    return answer.status, answer.headers["x-llmg-route"], answer.headers.get("x-llmg-attempts", "1")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "kind"),
    [("context_length_exceeded", "context_length_exceeded"), ("content_filter", "content_filtered")],
)
async def test_a_fallback_on_what_was_refused(code: str, kind: str, stream: bool) -> None:
    refusing = answering(400, {"error": {"message": "too much", "type": "invalid_request_error", "code": code}})
    async with upstream(refusing) as small, upstream(good) as large:
        servers = {"small": small, "large": large}
        for asked_for in (True, False):
            on = {"fallback_on": [kind]} if asked_for else {}
            config = _before(servers, targets=["small"], fallbacks=["large"], **on)
            async with in_process(config) as gateway:
                answer = await gateway.chat(stream=stream)
            assert _route(answer) == ((200, "large/theirs", "2") if asked_for else (400, "small/theirs", "1"))
            if not asked_for:
                assert answer.error["code"] == code
    assert (len(small.calls), len(large.calls)) == (2, 1)


async def filtered(call: Call) -> None:
    """An answer that a filter has ended before its first word."""
    if not call.body.get("stream"):
        choice = {**ANSWER["choices"][0], "message": {"role": "assistant", "content": ""}}
        await call.json(200, {**ANSWER, "choices": [{**choice, "finish_reason": "content_filter"}]})
        return
    await words(call)
    await call.event(chunk({}, "content_filter"))
    await call.close_stream()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hedge", [{}, {"hedge": {"after": "10s"}}], ids=["", "hedged"])
async def test_a_fallback_on_an_answer_that_was_filtered(hedge: dict[str, Any], stream: bool) -> None:
    async with upstream(filtered) as strict, upstream(good) as large:
        servers = {"strict": strict, "large": large}
        for asked_for in (True, False):
            on = {"fallback_on": ["content_filtered"]} if asked_for else {}
            config = _before(servers, targets=["strict"], fallbacks=["large"], **hedge, **on)
            async with in_process(config) as gateway:
                answer = await gateway.chat(stream=stream)
            assert _route(answer) == ((200, "large/theirs", "2") if asked_for else (200, "strict/theirs", "1"))
            assert (b'"content_filter"' in answer.body) is not asked_for


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slow", [stall, stall_after_head])
async def test_a_hedged_request(slow: Act, stream: bool) -> None:
    async with upstream(slow) as first, upstream(good) as second:
        config = _before({"first": first, "second": second}, hedge={"after": "20ms"})
        async with in_process(config) as gateway:
            answer = await gateway.chat(stream=stream)
            assert _route(answer) == (200, "second/theirs", "2")
            assert b"Hello" in answer.body
            await first.last.until_gone()


class Sick:
    """An upstream whose health checks fail for as long as it is told so."""

    def __init__(self) -> None:
        self.well = False
        self.checks = 0
        self._checked = asyncio.Condition()

    async def __call__(self, call: Call) -> None:
        if call.method == "POST":
            await good(call)
            return
        await call.json(200 if self.well else 503, {})
        async with self._checked:
            self.checks += 1
            self._checked.notify_all()

    async def more(self, checks: int) -> None:
        """Waits for so many."""
        enough = self.checks + checks
        async with asyncio.timeout(PATIENCE), self._checked:
            await self._checked.wait_for(lambda: self.checks >= enough)


async def test_who_fails_his_checks_is_spared_until_he_passes_one() -> None:
    sick = Sick()
    async with upstream(sick) as first, upstream(good) as second:
        often = {"resilience": {"health_check": {"interval": "10ms"}}}
        config = _before({"first": first, "second": second}, first=often)
        async with in_process(config) as gateway:
            await sick.more(2)  # with the second, the first has been heard of
            assert {_route(await gateway.chat()) for _ in range(4)} == {(200, "second/theirs", "1")}
            sick.well = True
            await sick.more(2)
            routes = {_route(await gateway.chat()) for _ in range(4)}
    assert routes == {(200, "first/theirs", "1"), (200, "second/theirs", "1")}
    assert not [call for call in second.calls if call.method == "GET"]


async def test_a_reload_brings_checks() -> None:
    async with upstream(answering(200, {})) as server:
        unchecked = _before({"up": server})
        needs = build.Needs(Settings(**unchecked), Transport())
        prober = resilience.make_prober(Dice(3))
        needs.live.changed = Checks(needs.live, needs.transport, prober).changed
        now = Current(needs, FakeClock())
        prober.start()
        await now.put(Settings(**_before({"up": server}, up={"resilience": {"health_check": {}}})), "2")
        call = await server.call()
        await prober.aclose()
        await needs.close()
    assert (call.method, call.path) == ("GET", "/v1/models")


def _overridden(name: str, **upstream: Any) -> dict[str, Any]:
    """A tenant with the provider `up` as it says, a model of that, and a key."""
    endpoint = {"keys": [{"id": "k", "key": f"{name}-{KEY}"}]}
    groups = {"g": {"endpoints": {"e": endpoint}}}
    return {"upstreams": {"up": upstream}, "models": {"mine": _target()}, "teams": {"t": {"groups": groups}}}


async def test_a_server_is_checked_once_for_all_levels_with_keys_of_their_own() -> None:
    """With the key of the highest; the targets of each of them hear of it."""
    sick = Sick()
    async with upstream(sick) as server:

        def config(key: str) -> Settings:
            often = {"api_key": key, "resilience": {"health_check": {"interval": "10ms"}}}
            other = f"{server.base_url}/other"
            tenants = {"acme": _overridden("acme", api_key="acme"), "else": _overridden("else", base_url=other)}
            return Settings(**_before({"up": server}, up=often), tenants=tenants)

        needs = build.Needs(config("root"), Transport())
        prober = resilience.make_prober(Dice(3))
        needs.live.changed = Checks(needs.live, needs.transport, prober).changed
        now = Current(needs, FakeClock())
        prober.start()
        scopes = [now.catalog.find(digest(f"{name}-{KEY}"), 0.0).scope for name in ("acme", "else")]
        targets = [*now.find("m").targets, *(scope.find("mine").targets[0] for scope in scopes if scope is not None)]
        async with asyncio.timeout(PATIENCE):
            while not all(target.health.down for target in targets):
                await sick.more(1)
        asked = {(call.path, call.headers["authorization"]) for call in server.calls}
        assert asked == {("/v1/models", "Bearer root"), ("/v1/other/models", "Bearer root")}
        sick.well = True
        async with asyncio.timeout(PATIENCE):
            while any(target.health.down for target in targets):
                await sick.more(1)
        await now.put(config("new"), "2")  # what acme has is as it was, and older than what the root has now
        while server.last.path != "/v1/models" or server.last.headers["authorization"] == "Bearer root":
            await sick.more(1)
        assert server.last.headers["authorization"] == "Bearer new"
        await prober.aclose()
        await needs.close()


async def test_checks_that_do_not_change_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tenant may have a provider of its own, and each first request of one brings a target."""
    made: list[str] = []

    def make(name: str, *rest: Any) -> Check | None:
        made.append(name)
        return resilience.make_check(name, *rest)

    monkeypatch.setattr(checks, "make_check", make)

    def config(number: int, *names: str) -> Settings:
        models: Any = {name: {"targets": [{"provider": "up", "model": name}]} for name in names}
        providers: Any = {"up": {**UP, "resilience": {"health_check": {}}}}
        return Settings(providers=providers, models=models, labels={"n": str(number)})

    needs = build.Needs(config(0, "m"), Transport())
    prober = resilience.make_prober(Dice(3))
    needs.live.changed = Checks(needs.live, needs.transport, prober).changed
    now = Current(needs, FakeClock())
    for number in range(5):
        await now.put(config(number, "m"), "2")
        await asyncio.sleep(0)
    assert made == ["up"]
    await now.put(config(5, "m", "n"), "3")
    await asyncio.sleep(0)
    assert made == ["up", "up"]
    await now.put(config(6, "m", "o"), "4")  # as many as before, but others
    await asyncio.sleep(0)
    assert made == ["up", "up", "up"]
