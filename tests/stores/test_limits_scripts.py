"""The scripts in a real Redis decide as the local limiter does, and leave nothing behind."""

from __future__ import annotations

import random
from typing import Any

import redis
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.levels import Level, Limits
from llmg.core.limits import WHATS, LimitReached, rates, reached
from llmg.routing.limits.book import Book, Entry
from llmg.stores.limits_scripts import DONE, FULL, LATE, UNKNOWN, Names, Script, Scripts, limits_of
from support.redis import redis_server

NAMES = Names("test")
SCRIPTS = Scripts(time="local now = tonumber(redis.call('GET', 'now'))\n")
START = 1_760_000_000
NEVER = 2**52  # microseconds: nobody gives up before that
LEASE = 3_600_000_000
STAY = 18_000_000
LIMITS = st.builds(
    Limits,
    requests=st.none() | st.integers(1, 6),
    tokens=st.none() | st.integers(10, 60),
    concurrent=st.none() | st.integers(1, 4),
)


class Server:
    """The scripts, as a test calls them: at a time of its own, in seconds."""

    def __init__(self, port: int) -> None:
        self.client: Any = redis.Redis(port=port, protocol=2)
        self.epoch = b""

    def forget(self) -> None:
        """All but the scripts."""
        self.client.flushall()
        self.at(START)
        self.epoch = self.greet("e", 0)[2]

    def at(self, now: float) -> None:
        """It is so late there."""
        self.client.set("now", round(now * 1e6))

    def run(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        """Its reply."""
        return self.client.eval(script.text, len(keys), *keys, *arguments)

    def greet(self, epoch: str, grace: int, replica: str = "a") -> Any:
        """Its reply."""
        return self.run(SCRIPTS.greet, [NAMES.epoch, NAMES.replicas], epoch, grace, replica, STAY)

    def reserve(self, id: str, levels: list[Level], tokens: int, lease: int = LEASE) -> Any:
        """Its reply."""
        keys = NAMES.of([level.name for level in levels])
        return self.run(SCRIPTS.reserve, keys, self.epoch, NEVER, id, tokens, lease, *limits_of(levels))

    def note(self, levels: list[Level], id: str = "", requests: int = 0, tokens: int = 0, slot: int = 0) -> Any:
        """Its reply."""
        keys = NAMES.of([level.name for level in levels])
        return self.run(SCRIPTS.note, keys, self.epoch, NEVER, id, requests, tokens, slot)

    def close(self) -> None:
        """The connection."""
        self.client.close()


def _answer(book: Book, levels: list[Level], tokens: int, now: float) -> Entry | LimitReached:
    try:
        return book.admit(levels, tokens, now)
    except LimitReached as failure:
        return failure


def _same(server: Server, dice: random.Random, root: Limits, left: Limits, right: Limits) -> None:
    """A random course of requests, decided and settled here and there."""
    server.forget()
    top = Level(limits=root)
    tenants = [Level(name="l", limits=left), Level(name="r", limits=right)]
    book, now = Book(), float(START)
    running: list[tuple[str, list[Level], Entry, int]] = []
    for number in range(40):
        now += dice.choice([0.0, 0.0, 0.25, 1.5, 20.0, 59.75, 61.0, 200.0])
        server.at(now)
        if running and dice.random() < 0.5:
            id, levels, entry, slot = running.pop(dice.randrange(len(running)))
            truth = dice.choice([0, entry.tokens, entry.tokens + 15])
            book.settle(entry, truth, now)
            more = truth - entry.tokens
            assert server.note(levels, id, 0, more, int(now) if more > 0 else slot)[0] == DONE
        levels, tokens = [top, dice.choice(tenants)], dice.choice([0, 5, 10])
        status, _, *rest = server.reserve(f"id{number}", levels, tokens)
        numbers = rest[3:] if status == FULL else rest[1:]
        uses = [(r, t, micros / 1e6) for r, t, micros in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)]
        here = _answer(book, levels, tokens, now)
        assert here.rates == rates(levels, uses)
        if isinstance(here, LimitReached):
            there = reached(levels[rest[0]], WHATS[rest[1]], here.rates, rest[2] / 1e6)
            assert (there.message, there.retry_after) == (here.message, here.retry_after)
        else:
            running.append((f"id{number}", levels, here, rest[0]))
        assert (status == FULL) == isinstance(here, LimitReached)


async def test_redis_decides_as_a_process_does_alone() -> None:
    async with redis_server() as process:
        server = Server(process.port)

        @given(st.randoms(use_true_random=False), LIMITS, LIMITS, LIMITS)
        def same(dice: random.Random, root: Limits, left: Limits, right: Limits) -> None:
            _same(server, dice, root, left, right)

        same()
        server.close()


async def test_what_comes_late_or_from_another_epoch_does_nothing() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        server.forget()
        level = Level(name="a", limits=Limits(requests=1, concurrent=1))
        keys = NAMES.of(["a"])
        now = START * 1_000_000
        for script, arguments in (
            (SCRIPTS.reserve, ("id", 5, LEASE, *limits_of([level]))),
            (SCRIPTS.note, ("", 1, 5, START)),
            (SCRIPTS.hold, (LEASE, "id")),
        ):
            some = keys if script is not SCRIPTS.hold else [keys[0], keys[2]]
            assert server.run(script, some, server.epoch, now - 1, *arguments) == [LATE, now]
            assert server.run(script, some, "another", NEVER, *arguments) == [UNKNOWN, now]
        assert sorted(server.client.keys()) == [b"now", NAMES.epoch.encode(), NAMES.replicas.encode()]
        assert server.reserve("id", [level], 5)[0] == DONE
        server.close()


async def test_who_finds_no_epoch_makes_one_up_and_all_others_take_it() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        server.forget()
        now = START * 1_000_000
        server.client.delete(NAMES.epoch)
        first = server.greet("one", 2_000_000)
        server.at(START + 1)
        second = server.greet("two", 2_000_000, "b")
        epoch, ready = f"one@{now + 2_000_000}".encode(), now + 2_000_000
        assert first == [DONE, now, epoch, ready, 1]
        assert second == [DONE, now + 1_000_000, epoch, ready, 2]
        server.close()


async def test_a_replica_is_counted_until_it_has_not_greeted_for_its_time() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        server.forget()
        assert [server.greet("e", 0, replica)[4] for replica in ("a", "b", "b", "c")] == [1, 2, 2, 3]
        server.at(START + 10)
        assert server.greet("e", 0, "a")[4] == 3
        server.at(START + 18)
        assert server.greet("e", 0, "b")[4] == 2
        server.at(START + 36)
        assert server.greet("e", 0, "d")[4] == 1
        server.close()


async def test_a_lease_that_is_not_renewed_ends() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        server.forget()
        level = Level(name="a", limits=Limits(concurrent=2))
        holds = [NAMES.epoch, NAMES.holds("a")]
        assert server.reserve("one", [level], 0, 10_000_000)[0] == DONE
        assert server.reserve("two", [level], 0, 10_000_000)[0] == DONE
        server.at(START + 8)
        assert server.run(SCRIPTS.hold, holds, server.epoch, NEVER, 10_000_000, "two")[0] == DONE
        assert server.reserve("three", [level], 0, 10_000_000)[0] == FULL
        server.at(START + 10)
        assert server.reserve("three", [level], 0, 10_000_000)[0] == DONE
        assert server.reserve("four", [level], 0, 10_000_000)[0] == FULL
        assert server.client.zrange(holds[1], 0, -1) == [b"two", b"three"]
        server.close()


async def test_a_clock_that_is_set_back_holds_nobody_back_for_long() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        server.forget()
        level = Level(name="a", limits=Limits(requests=1))
        assert server.reserve("one", [level], 0)[0] == DONE
        server.at(START - 30)  # the window stays where it was
        assert server.reserve("two", [level], 0)[0] == FULL
        server.at(START - 3600)  # it would for an hour: forgotten instead
        assert server.reserve("three", [level], 0)[0] == DONE
        assert server.reserve("four", [level], 0)[0] == FULL
        server.close()


async def test_every_key_expires() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        server.forget()
        level = Level(name="tenants/acme", limits=Limits(requests=1, tokens=9, concurrent=1))
        assert server.reserve("one", [level], 5, 15_000_000)[0] == DONE
        assert server.note([level], tokens=-2, slot=START)[0] == DONE
        left = {key.decode(): server.client.ttl(key) for key in server.client.scan_iter() if key != b"now"}
        begin = "{test}:limits:"
        of_level = {f"{begin}tenants/acme:counts", f"{begin}tenants/acme:holds"}
        assert set(left) == {f"{begin}epoch", f"{begin}replicas", *of_level}
        assert 30 <= left[f"{begin}replicas"] <= 36
        assert 3590 <= left[f"{begin}epoch"] <= 3600
        assert 55 <= left[f"{begin}tenants/acme:counts"] <= 62
        assert 25 <= left[f"{begin}tenants/acme:holds"] <= 30
        server.close()
