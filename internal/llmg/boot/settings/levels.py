"""What the levels of the catalog have to agree on: names that mean something, keys and aliases that are nobody else's.

Looks at sections that are right by themselves.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

from llmg.boot.settings.catalog import Endpoint, Level, Upstream, walk
from llmg.boot.settings.groups import Above, Mistake, Unsound, by_provider, flatten
from llmg.boot.settings.limits import check_limits
from llmg.boot.settings.models import FlatModel, Target
from llmg.boot.settings.problems import Expected, Keys, Problem, SettingsError, dotted
from llmg.boot.settings.providers import BackendProvider, OpenAIProvider, Provider
from llmg.boot.settings.shape import Settings
from llmg.routing.catalog import Allow, Names
from llmg.services.admission import digest

LevelNames = dict[Keys, Names[FlatModel]]
"""What names mean at each level, by its place; the root's is ()."""

_UNSOUND: Final = FlatModel.model_construct(targets=())
"""In the place of models that are wrong, or whose level has one that is."""


def mistakes(settings: Settings) -> list[Mistake]:
    """All that is wrong, with its place in the configuration."""
    _, found = names(settings)
    if settings.catalog is not None and settings.catalog.redis and settings.redis is None:
        found.append(Mistake(("catalog",), None, Expected("`redis`, as the catalog is kept there")))
    known: dict[Keys, Mapping[str, Provider]] = {(): settings.providers}
    for at, section in walk(settings.tenants):
        providers = known[at[:-2]]
        found += _unfit_upstreams(at, section, providers)
        if section.holds:  # others go by them
            said = {name: own.over(providers[name]) for name, own in section.upstreams.items() if name in providers}
            known[at] = {**providers, **said} if said else providers
    return [*found, *_shared(settings), *_counted_apart(settings)]


def misplaced(settings: Settings) -> Iterator[Mistake]:
    """Tenants in the configuration although they are kept elsewhere."""
    if settings.catalog is not None and settings.tenants:
        yield Mistake(("tenants",), None, Expected("no `tenants` here together with `catalog`"))


def names(settings: Settings) -> tuple[LevelNames, list[Mistake]]:
    """What names mean at each level, and what is wrong with them."""
    root = Names(own=settings.models)
    found: LevelNames = {(): root}
    wrong: list[Mistake] = []
    for at, section in walk(settings.tenants):
        above = found[at[:-2]]
        if section.models or section.allow is not None:
            above = _within(above, at, section, settings.providers, wrong)
        found[at] = above
    return found, wrong


def _within(
    above: Names[FlatModel], at: Keys, section: Level, providers: Mapping[str, Provider], wrong: list[Mistake]
) -> Names[FlatModel]:
    meaning = _meaning(above, providers)
    own: dict[str, FlatModel] = {}
    try:
        own = flatten(section.models, meaning, providers, above) if section.models else {}
    except Unsound as error:
        wrong += [Mistake((*at, "models", *one.keys), one.value, one.cause) for one in error.mistakes]
        own = dict.fromkeys(section.models, _UNSOUND)  # so that those below who refer to them are not blamed
    wrong += _barred(above, at, section, providers)
    allow = section.allow or ()
    for index, name in enumerate(allow):
        if not ("*" in name or above.knows(name) or by_provider(name, providers)):
            cause = Expected("the name of a model from the levels above", choices=above, show=True)
            wrong.append(Mistake((*at, "allow", index), name, cause))
    return Names("/".join(map(str, at)), own, above, None if section.allow is None else Allow(allow))


def _meaning(above: Names[FlatModel], providers: Mapping[str, Provider]) -> Above:
    """What a name means to the definitions of the level below."""

    def meaning(name: str) -> FlatModel | None:
        home = above.find(name)
        if home is not None:
            return home.own[name]
        return by_provider(name, providers) if above.allows(name) else None

    return meaning


def _barred(above: Names[FlatModel], at: Keys, section: Level, providers: Mapping[str, Provider]) -> Iterator[Mistake]:
    """Targets of providers' models that the levels above don't allow."""
    for name, model in section.models.items():
        for index, target in enumerate(() if isinstance(model, str) else model.targets):
            if isinstance(target, Target) and target.provider in providers:
                asked = f"{target.provider}/{target.model}"
                if not above.allows(asked):
                    cause = Expected("a model that the levels above allow", show=True)
                    yield Mistake((*at, "models", name, "targets", index), asked, cause)


def _unfit_upstreams(at: Keys, section: Level, providers: Mapping[str, Provider]) -> Iterator[Mistake]:
    for name, own in section.upstreams.items():
        place = (*at, "upstreams", name)
        provider = providers.get(name)
        if provider is None:
            yield Mistake(place, name, Expected("the name of a declared provider", choices=providers, show=True))
            continue
        fits = _fields(provider)
        for field in Upstream.model_fields:
            if field in own.model_fields_set and field not in fits:
                known = f"; that of '{name}' may be {', '.join(fits)}" if fits else ""
                yield Mistake((*place, field), None, Expected(f"a setting that such a provider has{known}"))
        if own.leaves_open(provider):
            address, key = ("base_url", "api_key") if own.base_url is not None else ("address", "token")
            words = f'`{key}` beside it ("" for none): another server does not get the key and headers from above'
            yield Mistake((*place, address), None, Expected(words))


def _fields(provider: Provider) -> tuple[str, ...]:
    """What a level may say of such a provider."""
    if isinstance(provider, OpenAIProvider):
        return ("base_url", "api_key", "headers")
    if isinstance(provider, BackendProvider) and provider.address is not None:
        return ("address", "token")
    return ()


def check_together(settings: Settings) -> None:
    """For settings that were changed after they were checked: raises SettingsError where each worker would count its
    own requests."""
    if found := [str(mistake.cause) for mistake in _counted_apart(settings)]:
        raise SettingsError([Problem("server.workers", words, "--workers") for words in found])


def _counted_apart(settings: Settings) -> Iterator[Mistake]:
    limits = chain([settings.limits], (section.limits for _, section in walk(settings.tenants)))
    try:
        check_limits(limits, settings.server.workers, settings.redis)
    except Expected as error:
        yield Mistake(("server", "workers"), None, error)


class _Once:
    """Tells what was there before."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._places: dict[object, Keys] = {}

    def __call__(self, value: object, at: Keys) -> Iterator[Mistake]:
        first = self._places.setdefault(value, at)
        if first is not at:
            yield Mistake(at, None, Expected(f"{self._what} that nobody else has, but it is that of {dotted(first)}"))


def _shared(settings: Settings) -> Iterator[Mistake]:
    """Keys and aliases that belong to two."""
    keys, aliases = _Once("a key"), _Once("an alias")
    for at, flat in ((("keys",), settings.keys), (("admin", "keys"), settings.admin.keys)):
        for name, secret in flat.items():
            yield from keys(digest(secret.get_secret_value()), (*at, name))
    for place, section in walk(settings.tenants):
        if isinstance(section, Endpoint):
            if section.alias is not None:
                yield from aliases(section.alias, (*place, "alias"))
            ids = _Once("an id")
            for index, key in enumerate(section.keys):
                yield from keys(key.digest, (*place, "keys", index))
                yield from ids(key.id, (*place, "keys", index, "id"))
