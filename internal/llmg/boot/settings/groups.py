"""Models that refer to others: aliases, and targets that are another model's. Flattened once, when they are read.

A *flat* model has targets only. Of a reference

- the targets are taken, with `weight` times the share that each has in its own model (in its tier, if there are any);
- the tiers become tiers within that of the reference: its first beside the tier's own targets, the others behind. That
  needs the policy `priority`, which is never supposed: a model without it, which refers to one that has it, is refused,
  as any other choice would ask targets that were to be spared;
- the policy, the retries and the fallbacks are the referring model's. What is known of a target (context window,
  capabilities, embeddings) is what is said nearest to it, and limits of calls what is said farthest from it.

An alias is the other model by another name: the same object. So it shares what is kept for a model at run time, too.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, InitErrorDetails
from pydantic_core.core_schema import with_info_after_validator_function

from llmg.boot.settings.models import Entry, FlatModel, GroupTarget, Model, Target
from llmg.boot.settings.policies import InnerPolicy, PriorityPolicy
from llmg.boot.settings.problems import Expected, Keys
from llmg.boot.settings.providers import ResilienceOverrides, TimeoutOverrides
from llmg.boot.settings.types import ModelName

Above = Callable[[str], FlatModel | None]
"""What a name means above a level, PROVIDER/MODEL included; None: nothing."""
Tier = tuple[int, int]
"""A target's priority, or that of the reference it came by, and its rank within that."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A reference that is wrong: its place below the models, what it says, and what was expected."""

    keys: Keys
    value: object
    cause: Expected


class Unsound(ValueError):
    """Models can't be flattened. `mistakes` holds all that was found."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(f"{mistake.keys}: {mistake.cause}" for mistake in self.mistakes))

    def located(self, at: Keys = ()) -> ValidationError:
        """The same as pydantic's, for validators. `at`: where the models are, below what is validated."""
        return ValidationError.from_exception_data(
            "models",
            [
                InitErrorDetails(type="value_error", loc=(*at, *one.keys), input=one.value, ctx={"error": one.cause})
                for one in self.mistakes
            ],
        )


def flatten(
    models: Mapping[str, Model | str], above: Above, providers: Collection[str], known: Iterable[str] = ()
) -> dict[str, FlatModel]:
    """The models of a level of the catalog, flat.

    A name that they refer to is one of theirs, or else what it means `above`; in its own definition, what it means
    above. `providers` are the names of all there are; `known` are names from above, for hints. Raises Unsound.
    """
    level = _Level(models, above, providers, known)
    mistakes = [*level.unknown(), *level.cycles(level.references)] or [*level.cycles(level.fallbacks)]
    if mistakes:
        raise Unsound(mistakes)
    flat = {name: level.flat(name) for name in models}
    if level.mistakes:
        raise Unsound(level.mistakes)
    return flat


def by_provider(name: str, providers: Collection[str]) -> FlatModel | None:
    """What PROVIDER/MODEL means; None: it is no such name."""
    provider, _, model = name.partition("/")
    if provider not in providers or not model:
        return None
    return FlatModel(targets=(Target(provider=provider, model=model),))


Edges = Callable[[str], Iterator[tuple[Keys, str]]]
"""Of a model: the names that it refers to, each with its place."""


class _Level:
    def __init__(
        self, models: Mapping[str, Model | str], above: Above, providers: Collection[str], known: Iterable[str]
    ) -> None:
        self._models = models
        self._above = above
        self._providers = providers
        self._known = known
        self._flat: dict[str, FlatModel] = {}
        self._unfit: set[str] = set()  # models with mistakes, and those that refer to them
        self.mistakes: list[Mistake] = []

    # names

    def references(self, name: str) -> Iterator[tuple[Keys, str]]:
        """To models whose targets are taken."""
        entry = self._models[name]
        if isinstance(entry, str):
            yield (name,), entry
            return
        for index, target in enumerate(entry.targets):
            if isinstance(target, GroupTarget):
                yield (name, "targets", index, "group"), target.group

    def fallbacks(self, name: str) -> Iterator[tuple[Keys, str]]:
        """To models that are asked after this one."""
        entry = self._models[name]
        if isinstance(entry, str):
            yield (name,), entry
            return
        for index, fallback in enumerate(entry.fallbacks):
            yield (name, "fallbacks", index), fallback

    def unknown(self) -> Iterator[Mistake]:
        """Names of providers and models that there are not."""
        for name, entry in self._models.items():
            for keys, other in self.references(name):
                if not self._inside(other, name) and self._above(other) is None:
                    yield self._unknown(keys, other)
            if isinstance(entry, Model):
                yield from self._unknown_of(name, entry)

    def _unknown_of(self, name: str, model: Model) -> Iterator[Mistake]:
        for index, target in enumerate(model.targets):
            if isinstance(target, Target) and target.provider not in self._providers:
                cause = Expected("the name of a declared provider", choices=self._providers, show=True)
                yield Mistake((name, "targets", index, "provider"), target.provider, cause)
        for keys, fallback in self.fallbacks(name):
            if fallback not in self._models and self._above(fallback) is None:
                yield self._unknown(keys, fallback)

    def _unknown(self, keys: Keys, name: str) -> Mistake:
        choices = dict.fromkeys((*self._models, *self._known))
        return Mistake(keys, name, Expected("the name of a declared model", choices=choices, show=True))

    def _inside(self, name: str, user: str) -> bool:
        """Does the name, in the definition of `user`, mean a model of this level?"""
        return name in self._models and (name != user or self._above(name) is None)

    # cycles

    def cycles(self, edges: Edges) -> Iterator[Mistake]:
        """Each edge that closes a cycle."""
        done: set[str] = set()
        for name in self._models:
            yield from self._cycles(name, edges, [], done)

    def _cycles(self, name: str, edges: Edges, path: list[str], done: set[str]) -> Iterator[Mistake]:
        if name in done:
            return
        path.append(name)
        for keys, other in edges(name):
            if other in path and self._inside(other, name):
                around = " -> ".join([*path[path.index(other) :], other])
                yield Mistake(keys, other, Expected(f"no cycle, but this one closes {around}"))
            elif self._inside(other, name):
                yield from self._cycles(other, edges, path, done)
        done.add(path.pop())

    # targets

    def flat(self, name: str) -> FlatModel:
        """A model of this level. What is wrong goes to `mistakes`."""
        if name not in self._flat:
            entry = self._models[name]
            self._flat[name] = self._meaning(entry, name) if isinstance(entry, str) else self._without(name, entry)
        return self._flat[name]

    def _meaning(self, name: str, user: str) -> FlatModel:
        if self._inside(name, user):
            return self.flat(name)
        model = self._above(name)
        assert model is not None, name  # `unknown` would have found it
        return model

    def _without(self, name: str, model: Model) -> FlatModel:
        """The model without references."""
        values = dict(vars(model))
        found = [entry for index, _ in enumerate(model.targets) for entry in self._targets(name, model, index)]
        if any(isinstance(target, GroupTarget) for target in model.targets):
            tiers = sorted({tier for tier, _ in found})
            places = {tier: place for place, tier in enumerate(tiers)}
            found = [(tier, _updated(target, priority=places[tier])) for tier, target in found]
            if isinstance(model.policy, PriorityPolicy) and len(tiers) > len(model.tiers):
                inner = [model.within(priority) for priority, _ in tiers]
                values["policy"] = model.policy.model_copy(update={"tiers": _short(inner)})
        values["targets"] = tuple(target for _, target in found)
        return FlatModel.model_construct(model.model_fields_set, **values)

    def _targets(self, name: str, model: Model, index: int) -> Iterator[tuple[Tier, Target]]:
        """What stands for the entry of that index."""
        entry = model.targets[index]
        if isinstance(entry, Target):
            near: dict[str, Any] = {
                "timeouts": _over(entry.timeouts, model.timeouts),
                "resilience": _before(entry.resilience, model.resilience),
            }
            yield (entry.priority, 0), _updated(entry, **near, **_facts(entry, model))
            return
        group = self._meaning(entry.group, name)
        if entry.group in self._unfit and self._inside(entry.group, name):
            self._unfit.add(name)
        elif (cause := _unfit(model, entry, group)) is not None:
            self._unfit.add(name)
            self.mistakes.append(Mistake((name, "targets", index, "group"), entry.group, cause))
        ranks = {priority: rank for rank, priority in enumerate(group.tiers)}
        weights = dict.fromkeys(ranks, 0.0)
        for target in group.targets:
            weights[target.priority] += target.weight
        for target in group.targets:
            share = target.weight / weights[target.priority]
            own: dict[str, Any] = {
                "weight": entry.weight * share,
                "timeouts": _over(model.timeouts, target.timeouts),
                "resilience": _before(model.resilience, target.resilience),
            }
            taken = _updated(target, **own, **_facts(target, model))
            yield (entry.priority, ranks[target.priority]), taken


def _unfit(model: Model, entry: GroupTarget, group: FlatModel) -> Expected | None:
    """Why the group's targets can't take the entry's place."""
    tiered = isinstance(group.policy, PriorityPolicy) and len(group.tiers) > 1
    if tiered and not isinstance(model.policy, PriorityPolicy):
        return Expected(f"the policy `priority` here, as '{entry.group}' has it")
    if model.wants_price(entry.priority) and any(target.price is None for target in group.targets):
        return Expected(f"a `price` for each target of '{entry.group}', as the policy `lowest_cost` chooses from them")
    return None


def _short(policies: list[InnerPolicy]) -> tuple[InnerPolicy, ...]:
    """Of tiers, the first one's first; the last one holds on."""
    end = len(policies)
    while end > 1 and policies[end - 1] == policies[end - 2]:
        end -= 1
    return tuple(policies[:end])


def _facts(target: Target, model: Model) -> dict[str, Any]:
    """What the model says of its targets, and this one does not say itself."""
    names = ("context_window", "capabilities", "embeddings")
    return {name: getattr(model, name) for name in names if getattr(target, name) is None}


def _over(nearer: TimeoutOverrides, farther: TimeoutOverrides) -> TimeoutOverrides:
    if not nearer.model_fields_set or not farther.model_fields_set:
        return farther if farther.model_fields_set else nearer
    return farther.model_copy(update=nearer.model_dump(exclude_none=True))


def _before(nearer: ResilienceOverrides, farther: ResilienceOverrides) -> ResilienceOverrides:
    if not nearer.model_fields_set or not farther.model_fields_set:
        return farther if farther.model_fields_set else nearer
    return nearer.before(farther)


def _updated(target: Target, **values: Any) -> Target:
    """A copy with those values that differ: what was not set stays so."""
    held = ((name, value, getattr(target, name)) for name, value in values.items())
    changed = {name: value for name, value, before in held if value is not before and value != before}
    return target.model_copy(update=changed) if changed else target


class _Flat:
    """Models as they are written, which become flat. Stands after the field `providers`."""

    def _flatten(self, models: dict[str, Model | str], info: ValidationInfo) -> dict[str, Any]:
        providers = info.data.get("providers")
        if providers is None:  # which is said already
            return dict(models)
        try:
            return dict(flatten(models, lambda name: by_provider(name, providers), providers))
        except Unsound as error:
            raise error.located() from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = handler.generate_schema(dict[ModelName, Entry])
        return with_info_after_validator_function(self._flatten, written)


FlatModels = Annotated[dict[ModelName, FlatModel], _Flat()]
"""The models of the root, flat; what is written are entries."""
