"""Active health checks: an upstream is asked at regular times whether it is there, before a request pays for asking.

One check at a time of each upstream. What counts:

| the checks                                  | the upstream's targets                                               |
|---------------------------------------------|----------------------------------------------------------------------|
| the first of all fails                      | down                                                                 |
| `failures` in a row fail                    | down                                                                 |
| fewer fail                                  | as before                                                            |
| `passes` in a row pass                      | not down; those whose circuit is open may be tried out, each at once |

A target that is down is asked only when no other is left: the check may be wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Final

from msgspec import Struct

from llmg.core.errors import Failure, Kind, internal
from llmg.ports import Random
from llmg.routing.health import Health

_JITTER: Final = 0.1  # of the interval, up and down: gateways that started together don't check together

Probe = Callable[[], Awaitable[None]]
"""Asks the upstream whether it is there. Raises Failure when it is not."""

Told = Callable[[str, Failure | None], None]
"""What became of an upstream, by its name: the failure that made it down, or None: it is back."""


class Limits(Struct, frozen=True, kw_only=True):
    """A check each `interval` seconds, `timeout` seconds long at most; how many in a row count."""

    interval: float = 10.0
    timeout: float = 2.0
    failures: int = 2
    passes: int = 1


class Check(Struct, frozen=True, kw_only=True):
    """An upstream's check. `name` is for the log, `healths` those of its targets; equal `of`: the same, asked alike."""

    name: str
    of: Hashable
    probe: Probe
    limits: Limits
    healths: tuple[Health, ...]


class Streak:
    """How the checks of one upstream went so far. Pure."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._failed = limits.failures - 1  # in a row: the first of all decides
        self._passed = 0
        self.down = False

    def count(self, *, passed: bool) -> bool:
        """One more. Does it change whether the upstream is down?"""
        self._passed = self._passed + 1 if passed else 0
        self._failed = 0 if passed else self._failed + 1
        limits = self._limits
        changed = self._passed >= limits.passes if self.down else self._failed >= limits.failures
        self.down = self.down is not changed
        return changed


class Prober:
    """Checks upstreams in tasks of its own, from `start` to `aclose`; which ones, `watch` tells. In one event loop."""

    def __init__(self, random: Random, told: Told) -> None:
        """`random` spreads the checks; `told` hears of each change once."""
        self._random = random
        self._told = told
        self._checks: Mapping[Hashable, Check] = {}
        self._running: dict[Hashable, _Watching] = {}
        self._started = False

    def watch(self, checks: Iterable[Check]) -> None:
        """From now on these. What is known of those that stay the same stays known."""
        self._checks = {check.of: check for check in checks}
        if self._started:
            self._settle()

    def start(self) -> None:
        """Begins to check, each upstream at once."""
        self._started = True
        self._settle()

    async def aclose(self) -> None:
        """Ends the checks that are under way."""
        self._started = False
        tasks = [watching.end() for watching in self._running.values()]
        self._running.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _settle(self) -> None:
        for gone in self._running.keys() - self._checks.keys():
            self._running.pop(gone).end()
        for of, check in self._checks.items():
            if of in self._running:
                self._running[of].goes_on(check.healths)
            else:
                self._running[of] = _Watching(check, self._random, self._told)


class _Watching:
    """The task that checks one upstream."""

    def __init__(self, check: Check, random: Random, told: Told) -> None:
        self._check = check
        self._healths = check.healths
        self._random = random
        self._told = told
        self._streak = Streak(check.limits)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"health checks of {check.name}")

    def goes_on(self, healths: tuple[Health, ...]) -> None:
        """With these targets from now on."""
        if healths is self._healths:
            return
        _forget(health for health in self._healths if health not in healths)
        self._healths = healths
        for health in healths:
            health.down_is(self._streak.down)

    def end(self) -> asyncio.Task[None]:
        """Its targets are no longer down for its sake. The task that is ending."""
        self._task.cancel()
        _forget(self._healths)
        return self._task

    async def _run(self) -> None:
        limits = self._check.limits
        while True:
            failure = await self._failure()
            changed = self._streak.count(passed=failure is None)
            for health in self._healths:
                health.checked(passed=failure is None, down=self._streak.down)
            if changed:
                self._told(self._check.name, failure)
            spread = 1.0 + _JITTER * (2.0 * self._random.random() - 1.0)
            await asyncio.sleep(limits.interval * spread)

    async def _failure(self) -> Failure | None:
        try:
            async with asyncio.timeout(self._check.limits.timeout):
                await self._check.probe()
        except TimeoutError:
            return Failure(Kind.UPSTREAM_TIMEOUT, "the upstream did not answer its health check in time")
        except Failure as failure:
            return failure
        except Exception as error:  # noqa: BLE001 - our own mistake must not end the checks, and `told` writes it down
            return internal(error)
        return None


def _forget(healths: Iterable[Health]) -> None:
    for health in healths:
        health.down_is(False)
