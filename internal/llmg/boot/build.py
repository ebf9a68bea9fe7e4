"""From settings to the objects they name: providers, targets, models. A kind of provider is one row in `MAKERS`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random as Dice
from shutil import which
from typing import Any, Final, TypeGuard

from msgspec import Struct, field
from msgspec.structs import replace

from llmg.boot.live import Live, Upstream
from llmg.boot.policies import make_policy
from llmg.boot.profiles import described
from llmg.boot.resilience import make_hedges, make_retries
from llmg.boot.scopes import Make, Scopes
from llmg.boot.settings import BackendProvider, EchoProvider, OpenAIProvider, Settings, Timeouts
from llmg.boot.settings import Provider as Config
from llmg.boot.settings.fingerprint import fingerprint
from llmg.boot.settings.levels import names
from llmg.boot.settings.models import FlatModel
from llmg.boot.settings.problems import Keys, dotted
from llmg.boot.settings.providers import ResilienceOverrides
from llmg.boot.system import SystemClock
from llmg.core.errors import Failure, Kind
from llmg.ports import Clock, Launcher, Profile, Provider, Random, Spec
from llmg.providers.echo import Echo
from llmg.providers.http import Origin, Transport
from llmg.providers.openai import OpenAI
from llmg.routing import timeouts
from llmg.routing.catalog import Names
from llmg.routing.models import Group, Target
from llmg.routing.queue import Queued
from llmg.services.models import Model
from llmg.shaping.fanout import Fanout

_GGUF: Final = b"GGUF"  # how a file of that format begins


class Needs(Struct):
    """What makers may use."""

    settings: Settings
    transport: Transport
    launcher: Launcher | None = None
    live: Live = field(default_factory=Live)
    clock: Clock = SystemClock()
    random: Random = Dice()

    async def close(self) -> None:
        """Closes every connection to providers."""
        await self.transport.close()
        if self.live.channels is not None:
            await self.live.channels.close()


Made = tuple[Provider, Profile]


class Wanted(Struct, frozen=True):
    """Which model of a provider; `declared` in the configuration, or named by a client. `embeds`: by some name, at some
    level, it is for embeddings, so its engine gets ready for them first: equal specs share a process."""

    upstream: Upstream
    model: str
    limits: Timeouts
    declared: bool
    embeds: bool


def _openai(config: OpenAIProvider, wanted: Wanted, needs: Needs) -> Made:
    origin = _origin(config, wanted, needs.transport)
    return OpenAI(needs.transport, origin, *config.credentials(), wanted.limits.connect), Profile()


def _origin(config: OpenAIProvider, wanted: Wanted, transport: Transport) -> Origin:
    """One for all models of a provider: they share its connections."""
    upstream = wanted.upstream
    if upstream.origin is None:
        upstream.origin = Origin(config.base_url, config.max_connections)
        if not upstream.kept:
            transport.retire(upstream.origin)
    return upstream.origin


def _echo(config: EchoProvider, wanted: Wanted, needs: Needs) -> Made:
    return Echo(), Profile()


def _backend(config: BackendProvider, wanted: Wanted, needs: Needs) -> Made:
    from llmg.providers import backend

    live = needs.live
    if live.channels is None:
        live.channels = backend.Channels()
    if config.address is not None:
        token = config.token.get_secret_value() if config.token else ""
        place: backend.Place = backend.Elsewhere(config.address, token)
    else:
        assert needs.launcher is not None
        spec = make_spec(config, wanted.model, needs.settings, declared=wanted.declared)
        place = backend.Launched(needs.launcher, replace(spec, embeddings=wanted.embeds))
    return backend.Backend(place, live.channels), Profile(n=False)


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


MAKERS: dict[str, Callable[[Any, Wanted, Needs], Made]] = {
    "backend": _backend,
    "openai": _openai,
    "echo": _echo,
}


def make_target(
    needs: Needs,
    upstream: Upstream,
    model: str,
    weight: float = 1.0,
    limits: Timeouts | None = None,
    *,
    resilience: ResilienceOverrides | None = None,
    declared: bool = True,
    embeds: bool = False,
) -> Target:
    """A model of a declared provider, within its wrappers, from the inside out: time limits, fan-out, queue."""
    config = upstream.config
    own = limits or _timeouts(config)
    inner, profile = MAKERS[config.kind](config, Wanted(upstream, model, own, declared, embeds), needs)
    provider: Provider = timeouts.Timeouts(
        inner, timeouts.Limits(first_event=own.first_event, idle=own.idle, total=own.total)
    )
    if not profile.n:
        provider = Fanout(provider)
    state = upstream.state(model, resilience)
    if state.queue is not None:
        provider = Queued(provider, state.queue)
    return Target(
        provider=upstream.name,
        model=model,
        inner=provider,
        weight=weight,
        profile=profile,
        health=state.health,
    )


Embedding = Collection[tuple[str, str]]
"""The models, with their providers, that are for embeddings by some name at some level."""


def make_group(
    needs: Needs, name: str, model: FlatModel, upstream: Callable[[str], Upstream], embedding: Embedding, created: int
) -> Group:
    """A declared model, but for its fallbacks. `created`: Unix seconds."""
    targets = []
    for config in model.targets:
        provider = upstream(config.provider)
        limits = config.timeouts.over(_timeouts(provider.config))
        embeds = (config.provider, config.model) in embedding
        made = make_target(
            needs, provider, config.model, config.weight, limits, resilience=config.resilience, embeds=embeds
        )
        targets.append(described(made, config))
    return Group(
        name=name,
        targets=tuple(targets),
        policy=make_policy(model, needs.clock, needs.random),
        created=created,
        fallback_on=frozenset(Kind(kind) for kind in model.fallback_on),
        retries=make_retries(model.retries),
        hedges=make_hedges(model.hedge),
    )


def make_scopes(needs: Needs, levels: Sequence[Names[FlatModel]], created: int) -> Scopes:
    """Makes what may be asked for at each of these levels, those above first. `created`: Unix seconds."""
    models = (model for level in levels for model in level.own.values())
    targets = (target for model in models for target in model.targets)
    embedding = frozenset((target.provider, target.model) for target in targets if target.embeddings)

    def group(name: str, model: FlatModel, upstream: Callable[[str], Upstream]) -> Group:
        return make_group(needs, name, model, upstream, embedding, created)

    def target(upstream: Upstream, model: str) -> Target:
        embeds = (upstream.name, model) in embedding
        return make_target(needs, upstream, model, declared=False, embeds=embeds)

    ground = fingerprint(sorted(embedding), needs.settings.models_dir)
    return Scopes(needs.live, levels, Make(group, target, ground))


def _timeouts(config: Config) -> Timeouts:
    return Timeouts() if isinstance(config, EchoProvider) else config.timeouts


class Unusable(Failure):
    """A declared local model can't be used here. `keys`: its place in the configuration."""

    def __init__(self, failure: Failure, keys: Keys) -> None:
        super().__init__(failure.kind, f"{dotted(keys)}: {failure.message}", param=failure.param)
        self.keys = keys


def check(settings: Settings) -> None:
    """Raises Unusable when a declared local model has no file, or one that our engine can't read, or its engine's
    command is not there."""
    if not any(map(_runs_here, settings.providers.values())):
        return
    checked: set[tuple[str, str]] = set()
    for keys, model in _declared(settings):
        for asked in dict.fromkeys((target.provider, target.model) for target in model.targets):
            if asked not in checked:
                checked.add(asked)
                try:
                    _check_local(*asked, settings)
                except Failure as failure:
                    raise Unusable(failure, keys) from None


def _declared(settings: Settings) -> Iterator[tuple[Keys, FlatModel]]:
    """All models with their places, those of higher levels first."""
    levels, _ = names(settings)
    known: set[int] = set()
    for at, level in levels.items():
        if id(level) not in known:
            known.add(id(level))
            for name, model in level.own.items():
                yield (*at, "models", name), model


def _check_local(provider: str, model: str, settings: Settings) -> None:
    config = settings.providers[provider]
    if not _runs_here(config):
        return
    spec = make_spec(config, model, settings)
    if spec.external:
        _check_command(spec)
    elif spec.engine == "xllamacpp":
        _check_file(spec)


def _runs_here(config: Config) -> TypeGuard[BackendProvider]:
    return isinstance(config, BackendProvider) and config.engine is not None


def _check_command(spec: Spec) -> None:
    command = spec.external[0]
    if which(command, path=dict(spec.env).get("PATH")) is None:
        words = f"the engine '{spec.engine}' can't be started: there is no program {command}"
        raise Failure(Kind.MODEL_NOT_FOUND, words, param="model")


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


def describe(group: Group) -> Model:
    """A model as clients see it."""
    profile = group.profile()
    operations = [name for name in ("chat", "embed") if getattr(profile, name)]
    owners = dict.fromkeys(target.provider for target in group.targets)
    return Model(id=group.name, created=group.created, owner=", ".join(owners), operations=tuple(operations))
