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

    def greet(
        self, epoch: str, grace: int, replica: str = "a", *, told: bool = True, since: float = NEVER / 1e6
    ) -> Any:
        """Its reply. `since` in seconds: who lost Redis misses those that have not greeted for two since then."""
        keys, reunion = (
            [NAMES.epoch, NAMES.replicas, NAMES.reunion],
            (round(since * 1e6), 2_000_000, 500_000, 3_000_000),
        )
        return self.run(SCRIPTS.greet, keys, epoch, grace, replica, STAY, int(told), *reunion)

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


class Reunion:
    """Replicas that lost Redis in second 5, and are back from second 10 on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        server.forget()
        for second, replica in ((0, "gone"), (4, "b"), (5, "c"), (5, "a")):
            self.after(second, replica)

    def after(self, second: float, replica: str, *, told: bool = True, since: float = NEVER / 1e6) -> float:
        """The second from which on the replica that greets is to follow Redis."""
        self._server.at(START + second)
        return float(self._server.greet("e", 0, replica, told=told, since=since)[3] / 1e6 - START)

    def back(self, second: float, replica: str, *, told: bool = True) -> float:
        """As above, for one that had lost it."""
        return self.after(second, replica, told=told, since=START + 3)


async def test_who_lost_redis_together_follows_it_again_together() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        them = Reunion(server)
        assert them.back(10, "a", told=False) == 0
        assert them.back(10, "a") == 13
        assert them.back(10.5, "b", told=False) == 13
        assert them.back(10.75, "a") == 13  # b has not told yet what it let in
        assert them.back(11, "b") == 13
        assert them.after(11.25, "new") == 13
        assert them.back(11.5, "c", told=False) == 13
        assert them.back(11.5, "c") == 12
        assert [them.back(11.75, replica) for replica in ("a", "b", "c")] == [12] * 3
        server.close()


async def test_who_does_not_come_back_is_waited_for_until_the_end_of_the_time_of_grace() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        them = Reunion(server)
        assert them.back(10, "a") == 13
        assert them.back(11, "b") == 13
        assert them.back(12.75, "a") == 13
        assert 2000 <= server.client.pttl(NAMES.reunion) <= 3000
        server.close()


async def test_who_lost_redis_alone_misses_nobody() -> None:
    async with redis_server() as process:
        server = Server(process.port)
        them = Reunion(server)
        for second in (6, 7, 8, 9):
            for replica in ("b", "c"):
                assert them.after(second, replica) == 0
        assert them.back(10, "a", told=False) == 0
        assert them.back(10, "a") == 0
        assert not server.client.exists(NAMES.reunion)
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
        assert 3590 <= left[f"{begin}replicas"] <= 3600
        assert 3590 <= left[f"{begin}epoch"] <= 3600
        assert 55 <= left[f"{begin}tenants/acme:counts"] <= 62
        assert 25 <= left[f"{begin}tenants/acme:holds"] <= 30
        server.close()
