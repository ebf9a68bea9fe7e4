"""How long a model that failed to start is left alone."""

import pytest

from launcher.conftest import FakeClock
from llmg.core.errors import Failure, Kind
from llmg.launcher.cooldown import Cooldowns, again
from llmg.ports import Spec

SPEC = Spec(engine="parrot", model="polly")
FAILURE = Failure(Kind.UPSTREAM_ERROR, "no", param="model", code="x", detail="d", blame="us")


def test_doubles_up_to_a_minute_and_is_forgotten_on_success(clock: FakeClock) -> None:
    cooldowns = Cooldowns(clock)
    cooldowns.check(SPEC)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        assert cooldowns.failed(SPEC, FAILURE).retry_after == seconds
        clock.now += seconds - 0.25
        with pytest.raises(Failure) as caught:
            cooldowns.check(SPEC)
        assert caught.value.retry_after == 0.25
        assert vars(caught.value) | {"retry_after": None} == vars(FAILURE)
        clock.now += 0.25
        cooldowns.check(SPEC)
    cooldowns.succeeded(SPEC)
    assert cooldowns.failed(SPEC, FAILURE).retry_after == 1


def test_is_the_specs_own(clock: FakeClock) -> None:
    cooldowns = Cooldowns(clock)
    cooldowns.failed(SPEC, FAILURE)
    cooldowns.check(Spec(engine="parrot", model="coco"))


def test_again_is_the_same_but_another() -> None:
    try:
        raise FAILURE
    except Failure as raised:
        fresh = again(raised)
    assert vars(fresh) == vars(FAILURE)
    assert fresh.__traceback__ is None
