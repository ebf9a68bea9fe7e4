"""Starting, stopping and weighing processes, by Linux's /proc.

Every server runs in a process group of its own, so that whatever it started goes when it goes.
"""

import os
import random
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Below the ports that the kernel gives to outgoing connections: those come and go between the look and the bind,
# and a client that polls such a port of the loopback can meet itself.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """What is started inside runs on this processor and stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A process in a group of its own, its output in a file."""

    def __init__(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def ends_within(self, seconds: float) -> bool:
        """Waits so long for its end. Has it come?"""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self, lines: int = 8) -> str:
        """The end of its output, indented; says so when there is none."""
        tail = self.log.read_text(errors="replace").strip().splitlines()[-lines:]
        return "\n".join("    " + line for line in tail or ["(it wrote nothing)"])

    def stop(self, how: signal.Signals = signal.SIGTERM, within: float = 5.0) -> None:
        """Asks its group to end, then ends what is left of the group."""
        self._signal(how)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, which: signal.Signals) -> None:
        try:
            os.killpg(self.pid, which)
        except ProcessLookupError:
            return  # the whole group has ended


def _stats() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat after the name, for every process: [1] is the parent, [11:15] the times."""
    stats = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stats[int(entry)] = Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return stats


def _tree(root: int, stats: Mapping[int, Sequence[str]]) -> list[int]:
    tree = [root] if root in stats else []
    for parent in tree:
        tree += [pid for pid, fields in stats.items() if int(fields[1]) == parent]
    return tree


def cpu_seconds(root: int) -> float:
    """CPU time, user and system, of a process, its living descendants and the children they have reaped."""
    stats = _stats()
    return sum(int(ticks) for pid in _tree(root, stats) for ticks in stats[pid][11:15]) / TICKS


def pss_mb(root: int) -> float:
    """Proportional set size of a process and its descendants, in MB: shared pages count by their share."""
    kilobytes = 0
    for pid in _tree(root, _stats()):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kilobytes += sum(int(size) for size in re.findall(r"^Pss:\s+(\d+)", rollup, re.MULTILINE))
    return kilobytes / 1024
