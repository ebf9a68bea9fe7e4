"""From settings to the objects they name: providers, targets, models. A kind of provider is one row in `MAKERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from random import Random as Dice
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from llmg.boot.policies import make_policy
from llmg.boot.resilience import State, fallbacks, make_retries, make_state
from llmg.boot.settings import BackendProvider, EchoProvider, OpenAIProvider, Settings, Timeouts
from llmg.boot.settings import Provider as Config
from llmg.boot.settings.providers import Resilience
from llmg.boot.system import SystemClock
from llmg.core.errors import Failure, Kind
from llmg.ports import Clock, Launcher, Profile, Provider, Random, Spec
from llmg.providers.echo import Echo
from llmg.providers.http import Origin, Transport
from llmg.providers.openai import OpenAI
from llmg.routing import router, timeouts
from llmg.routing.queue import Queued
from llmg.services.models import Model
from llmg.shaping.fanout import Fanout

_GGUF: Final = b"GGUF"  # how a file of that format begins
_DIRECT: Final = 256  # PROVIDER/MODEL names of each provider whose targets are kept: clients make them up


class Needs(Struct):
    """What makers may use."""

    settings: Settings
    transport: Transport
    launcher: Launcher | None = None
    channels: Any = None  # providers.backend.Channels: made with the first backend, as it brings grpc along
    origins: dict[str, Origin] = {}  # of the upstreams, by the provider's name
    states: dict[tuple[str, str], State] = {}  # of the declared targets, by provider and model
    clock: Clock = SystemClock()
    random: Random = Dice()

    async def close(self) -> None:
        """Closes every connection to providers."""
        await self.transport.close()
        if self.channels is not None:
            await self.channels.close()


Made = tuple[Provider, Profile]


class Wanted(Struct, frozen=True):
    """Which model of a provider; `declared` in the configuration, or named by a client."""

    provider: str
    model: str
    limits: Timeouts
    declared: bool


def _openai(config: OpenAIProvider, wanted: Wanted, needs: Needs) -> Made:
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    if config.organization:
        headers["OpenAI-Organization"] = config.organization
    key = config.api_key.get_secret_value() if config.api_key else None
    return OpenAI(needs.transport, _origin(config, wanted, needs), key, headers, wanted.limits.connect), Profile()


def _origin(config: OpenAIProvider, wanted: Wanted, needs: Needs) -> Origin:
    """One for all models of a provider: they share its connections."""
    if wanted.provider not in needs.origins:
        needs.origins[wanted.provider] = Origin(config.base_url, config.max_connections)
    return needs.origins[wanted.provider]


def _echo(config: EchoProvider, wanted: Wanted, needs: Needs) -> Made:
    return Echo(), Profile()


def _backend(config: BackendProvider, wanted: Wanted, needs: Needs) -> Made:
    from llmg.providers import backend

    if needs.channels is None:
        needs.channels = backend.Channels()
    if config.address is not None:
        token = config.token.get_secret_value() if config.token else ""
        place: backend.Place = backend.Elsewhere(config.address, token)
    else:
        assert needs.launcher is not None
        spec = make_spec(config, wanted.model, needs.settings, declared=wanted.declared)
        # The same for every name of the model, as equal specs share a process.
        embeddings = _embeds(needs.settings, wanted.provider, wanted.model)
        place = backend.Launched(needs.launcher, replace(spec, embeddings=embeddings))
    return backend.Backend(place, needs.channels), Profile(n=False)


def make_spec(config: BackendProvider, model: str, settings: Settings, *, declared: bool = True) -> Spec:
    """The process that a local model needs. Raises Failure (model_not_found) where there is no such file."""
    from llmg.launcher.models import resolve_model

    file = "" if config.external else str(resolve_model(model, settings.models_dir, paths=declared).absolute())
    return Spec(
        engine=config.engine or "",
        model=model,
        file=file,
        external=config.external or (),
        context_size=config.context_size,
        parallel=config.parallel,
        threads=config.threads,
        options=config.options,
        env=tuple((name, value.get_secret_value()) for name, value in config.env.items()),
        startup_timeout=config.startup_timeout,
    )


def _embeds(settings: Settings, provider: str, model: str) -> bool:
    """Whether the configuration has the provider's model make embeddings: its engine gets ready for them first."""
    names = [declared for declared in settings.models.values() if declared.embeddings]
    return any(target.provider == provider and target.model == model for name in names for target in name.targets)


MAKERS: dict[str, Callable[[Any, Wanted, Needs], Made]] = {
    "backend": _backend,
    "openai": _openai,
    "echo": _echo,
}


def make_target(
    needs: Needs, name: str, model: str, weight: float = 1.0, limits: Timeouts | None = None, *, declared: bool = True
) -> router.Target:
    """A model of a declared provider, within its wrappers, from the inside out: time limits, fan-out, queue."""
    config = needs.settings.providers[name]
    own = limits or _timeouts(config)
    inner, profile = MAKERS[config.kind](config, Wanted(name, model, own, declared), needs)
    provider: Provider = timeouts.Timeouts(
        inner, timeouts.Limits(first_event=own.first_event, idle=own.idle, total=own.total)
    )
    if not profile.n:
        provider = Fanout(provider)
    state = needs.states.get((name, model)) or make_state(_resilience(config))
    if declared:
        needs.states[name, model] = state
    if state.queue is not None:
        provider = Queued(provider, state.queue)
    return router.Target(
        provider=name,
        model=model,
        inner=provider,
        weight=weight,
        profile=profile,
        health=state.health,
    )


def make_models(needs: Needs, created: int) -> router.Models:
    """All declared models, and the way to those of declared providers. `created`: Unix seconds."""
    groups: dict[str, router.Group] = {}
    for name, model in needs.settings.models.items():
        targets = []
        for target in model.targets:
            own = model.timeouts.over(_timeouts(needs.settings.providers[target.provider]))
            made = make_target(needs, target.provider, target.model, target.weight, own)
            if model.embeddings is not None:
                made = replace(made, profile=replace(made.profile, embed=model.embeddings))
            targets.append(made)
        policy = make_policy(model, needs.clock, needs.random)
        groups[name] = router.Group(
            name=name,
            targets=tuple(targets),
            policy=policy,
            created=created,
            fallbacks=fallbacks(name, needs.settings.models),
            fallback_on=frozenset(Kind(kind) for kind in model.fallback_on),
            retries=make_retries(model.retries),
        )
    direct = {name: _direct(needs, name) for name in needs.settings.providers}
    return router.Models(groups, direct)


def _timeouts(config: Config) -> Timeouts:
    return Timeouts() if isinstance(config, EchoProvider) else config.timeouts


def _resilience(config: Config) -> Resilience:
    return Resilience() if isinstance(config, EchoProvider) else config.resilience


def _direct(needs: Needs, provider: str) -> Callable[[str], router.Target]:
    return lru_cache(_DIRECT)(lambda model: make_target(needs, provider, model, declared=False))


def check(settings: Settings) -> None:
    """Raises Failure when a declared local model has no file, or one that our engine can't read."""
    for model in settings.models.values():
        for target in model.targets:
            config = settings.providers[target.provider]
            if isinstance(config, BackendProvider) and config.engine is not None:
                spec = make_spec(config, target.model, settings)
                if spec.engine == "xllamacpp" and not spec.external:
                    _check_file(spec)


def _check_file(spec: Spec) -> None:
    try:
        with open(spec.file, "rb") as file:
            begins = file.read(len(_GGUF))
    except OSError as error:
        reason = f"{spec.file} can't be read: {error.strerror}"
    else:
        reason = "" if begins == _GGUF else f"{spec.file} is not a GGUF file"
    if reason:
        raise Failure(Kind.MODEL_NOT_FOUND, f"the model '{spec.model}' can't be used: {reason}", param="model")


def describe(group: router.Group) -> Model:
    """A model as clients see it."""
    profile = group.profile()
    operations = [name for name in ("chat", "embed") if getattr(profile, name)]
    owners = dict.fromkeys(target.provider for target in group.targets)
    return Model(id=group.name, created=group.created, owner=", ".join(owners), operations=tuple(operations))
