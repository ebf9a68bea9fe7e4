"""gRPC's threads and ours: which may take the processor from which."""

from __future__ import annotations

import os
import threading

import pytest

from llmg.doors.grpc import server


def policy_of_a_new_thread() -> int:
    """How the system schedules it."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return found[0]


def test_threads_started_inside_are_polite_and_ours_is_not() -> None:
    with server.polite_threads():
        assert policy_of_a_new_thread() == os.SCHED_BATCH
    assert policy_of_a_new_thread() == os.sched_getscheduler(0) == os.SCHED_OTHER


def test_ours_is_as_it_was_after_an_error() -> None:
    with pytest.raises(RuntimeError), server.polite_threads():
        raise RuntimeError
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_where_the_system_does_not_let_us_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with server.polite_threads():
        assert policy_of_a_new_thread() == os.SCHED_OTHER
