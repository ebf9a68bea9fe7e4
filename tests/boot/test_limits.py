"""Limits and Redis as they are configured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llmg.boot.limits import limits_of, make_limiter, make_redis, make_shared_limiter
from llmg.boot.settings.limits import RateLimits, Redis, check_limits
from llmg.boot.settings.problems import Expected
from llmg.boot.system import SystemClock
from llmg.core.errors import Failure
from llmg.core.levels import UNLIMITED, Level, Limits, Rates
from llmg.core.limits import check_size, reached
from support.redis import redis_server

URL = "redis://127.0.0.1:6379/0"


def test_what_is_left_out_is_not_limited() -> None:
    assert limits_of(RateLimits()) is UNLIMITED
    assert limits_of(RateLimits(requests_per_minute=1)) == Limits(requests=1)
    assert limits_of(RateLimits(tokens_per_minute=2, max_concurrent=3)) == Limits(tokens=2, concurrent=3)


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "max_concurrent"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_a_limit_is_a_whole_number_of_at_least_one(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        RateLimits.model_validate({name: value})


@pytest.mark.parametrize(
    "url", [URL, "redis://cache", "rediss://user:p%40ss@cache.internal:6380/3", "redis://[::1]:6379/", "redis://:pw@h"]
)
def test_where_redis_may_be(url: str) -> None:
    config = Redis.model_validate({"url": url})
    assert config.url.get_secret_value() == url
    assert "pw" not in repr(config)


@pytest.mark.parametrize(
    "url",
    ["", "cache:6379", "http://cache", "unix:///run/redis.sock", "redis://", "redis://h:0", "redis://h:99999",
     "redis://h/zero", "redis://h/0/1", "redis://h?db=1", "redis://h#x"],
)  # fmt: skip
def test_where_it_may_not(url: str) -> None:
    with pytest.raises(ValidationError, match="expected a URL"):
        Redis.model_validate({"url": url})


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"lease": "500ms"}, {"on_failure": "maybe"}, {"prefix": "a{b}"}, {"ca": 1}]
)
def test_what_else_may_not_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Redis.model_validate({"url": URL, **wrong})


def test_several_workers_count_together_or_not_at_all() -> None:
    redis, limits = Redis.model_validate({"url": URL}), RateLimits(requests_per_minute=1)
    check_limits([limits], 1, None)
    check_limits([limits], 4, redis)
    check_limits([RateLimits(), RateLimits()], 4, None)
    with pytest.raises(Expected, match="`redis`, as there are limits and several workers"):
        check_limits([RateLimits(), limits], 4, None)


async def test_what_is_made_of_it_counts() -> None:
    levels = [Level(limits=Limits(requests=5))]
    alone = make_limiter(SystemClock())
    async with redis_server() as server:
        config = Redis.model_validate({"url": server.url, "timeout": "5s", "prefix": "mine"})
        redis = make_redis(config)
        shared = make_shared_limiter(SystemClock(), redis, config)
        await redis.start()
        await shared.start()
        for limiter in (alone, shared):
            reservation = await limiter.reserve(levels, 0)
            assert reservation.rates.requests is not None
            assert reservation.rates.requests.remaining == 4
            reservation.settle(0)
        assert shared.up
        names = ("limits::counts", "limits:epoch", "limits:replicas")
        assert sorted(await redis.client.keys()) == [f"{{mine}}:{name}".encode() for name in names]
        await shared.aclose()
        await redis.aclose()


def test_the_examples_of_the_documentation_are_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
    levels, store = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.M | re.S)]
    acme = levels["tenants"]["acme"]
    for section in (levels["limits"], acme["limits"], acme["teams"]["search"]["limits"]):
        assert limits_of(RateLimits.model_validate(section)) is not UNLIMITED
    told = Redis.model_validate(store["redis"])
    assert told.model_copy(update={"url": None}) == Redis.model_validate({"url": URL}).model_copy(update={"url": None})
    name = Level(name="tenants/acme", limits=limits_of(RateLimits.model_validate(acme["limits"])))
    with pytest.raises(Failure) as raised:
        check_size([name], 250_040)
    assert raised.value.message in text
    assert reached(name, "requests", Rates(), 1.0).message in text
