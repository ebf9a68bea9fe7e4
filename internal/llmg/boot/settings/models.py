"""The models that clients ask for, and who answers them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, model_validator
from pydantic_core import CoreSchema
from pydantic_core.core_schema import (
    no_info_before_validator_function,
    no_info_wrap_validator_function,
    str_schema,
    union_schema,
)

from llmg.boot.settings.hedging import Hedge
from llmg.boot.settings.policies import InnerPolicy, PlainPolicy, Policy, PriorityPolicy
from llmg.boot.settings.problems import Expected
from llmg.boot.settings.providers import ResilienceOverrides, TimeoutOverrides
from llmg.boot.settings.types import (
    NO_BOOLEAN,
    Count,
    ModelName,
    Money,
    PositiveCount,
    Section,
    Share,
    Text,
    UpTo1m,
    UpTo5m,
    Words,
)
from llmg.boot.settings.units import spoken_duration

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN]


class Price(Section):
    """What a target's tokens cost, in USD per million tokens."""

    input: Money = Field(description="Of the prompt's tokens.")
    output: Money = Field(description="Of the answer's tokens.")


Capability = Literal["tools", "vision", "json_schema", "reasoning", "audio"]
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)


class _Listed:
    """A list of capabilities stands for the mapping that has them as true, and all others as false."""

    def _mapping(self, value: object) -> object:
        if isinstance(value, dict):
            return value
        if not isinstance(value, list | tuple):
            raise Expected("a list such as [tools, vision], or a mapping of such to true or false")
        has = _CAPABILITIES.validate_python(value)
        return {capability: capability in has for capability in CAPABILITIES}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        mapping = handler(source)
        either = union_schema([_CAPABILITIES.core_schema, mapping])
        return no_info_before_validator_function(self._mapping, mapping, json_schema_input_schema=either)


_CAPABILITIES = TypeAdapter(tuple[Capability, ...])
Capabilities = Annotated[dict[Capability, bool], _Listed(), Words("list, or mapping to true or false")]
"""Which it has, and which not. Nothing is known of those that aren't in it."""

_CAN = (
    "A list: these of tools, vision, json_schema, reasoning, audio, and no others. Or a mapping of some to true or "
    "false: nothing is known of the others."
)


class GroupTarget(Section):
    """Another model, whose targets take this place. The policy, the retries and the fallbacks are this model's."""

    group: ModelName = Field(description="The other model's name, or PROVIDER/MODEL.")
    weight: Weight = Field(
        default=1.0,
        description="The share of requests that go to its targets together, relative to the other entries. Within it, "
        "they have the shares that they have there.",
    )
    priority: Count = Field(
        default=0,
        description="With the policy `priority`: the tier. The other model's own tiers, if any, are tiers within it.",
    )


class Target(Section):
    """A model of a provider that may answer."""

    provider: Text = Field(description="The name of a provider declared under `providers`.")
    model: Text = Field(
        description="The provider's name of the model. For a backend: a packaged model, a path to a .gguf file, "
        "or the name of a file below models_dir."
    )
    weight: Weight = Field(
        default=1.0,
        description="The share of requests that go here, relative to the other targets'; for policies that count what "
        "is in flight, the share of that.",
    )
    priority: Count = Field(
        default=0, description="With the policy `priority`: the tier. Lower ones are asked first; 0 is the first."
    )
    price: Price | None = Field(default=None, description="With the policy `lowest_cost`: what its tokens cost.")
    context_window: PositiveCount | None = Field(
        default=None,
        description="Tokens of prompt and answer together. It is not asked when the prompt seems to be longer: four "
        "characters are taken for a token. Left out: the model's.",
    )
    capabilities: Capabilities | None = Field(
        default=None,
        description="What it can do; it is not asked for what it can't. Left out: as the model says. " + _CAN,
    )
    embeddings: bool | None = Field(
        default=None, description="Whether it makes embeddings. Left out: as the model says, or else its provider."
    )
    timeouts: TimeoutOverrides = Field(
        default=TimeoutOverrides(), description="Limits of a call, where not the model's."
    )
    resilience: ResilienceOverrides = Field(
        default=ResilienceOverrides(), description="When it is in trouble or full, where not as the model says."
    )
    region: str = Field(default="", description="Where it is, in your words.")
    labels: dict[Text, Text] = Field(default={}, description="More about it, in your words.")


class _Either:
    """A target, or another model's: told apart by `group`."""

    def _choose(self, value: Any, target: Callable[[Any], Target]) -> "Target | GroupTarget":
        if isinstance(value, GroupTarget):
            return value
        if not isinstance(value, dict) or "group" not in value:
            return target(value)
        if foreign := [key for key in value if key in Target.model_fields and key not in GroupTarget.model_fields]:
            raise Expected(f"either `group` or `{foreign[0]}`, not both")
        return GroupTarget.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        target = handler.generate_schema(Target)
        either = union_schema([target, handler.generate_schema(GroupTarget)])
        return no_info_wrap_validator_function(self._choose, target, json_schema_input_schema=either)


class Retries(Section):
    """How often a model's targets are asked again, when all have failed before the answer began."""

    max: Count = Field(default=1, description="For one request, at most.")
    backoff: UpTo1m = Field(
        default=0.1, description="The longest wait before the first; it doubles each time, and is drawn at random,"
    )
    max_backoff: UpTo5m = Field(default=2.0, description="up to this.")
    budget: Share = Field(default=0.2, description="Retries per request, of all the model's: 0 to 1.")
    floor: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN] = Field(
        default=1.0, description="Retries per second that there may be all the same."
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Retries":
        if self.backoff > self.max_backoff:
            first, most = spoken_duration(self.backoff), spoken_duration(self.max_backoff)
            raise Expected(f"a `backoff` of at most `max_backoff`, but {first} is longer than {most}")
        return self


class Model(Section):
    """A model that clients may ask for by name, and who answers it."""

    policy: Policy = Field(
        default=PlainPolicy(kind="weighted"),
        description="How a target is chosen: a policy's name, or `kind` and options. When a target fails before its "
        "answer began, the next is chosen among the others.",
    )
    targets: Annotated[tuple[Annotated[Target | GroupTarget, _Either()], ...], Field(min_length=1)] = Field(
        description="Who may answer; at least one. Another model's name as `group` stands for its targets."
    )
    context_window: PositiveCount | None = Field(
        default=None, description="Of the targets that don't say it themselves. Left out: any prompt is short enough."
    )
    capabilities: Capabilities | None = Field(
        default=None,
        description="Of the targets that don't say it themselves. Left out: nothing is known. " + _CAN,
    )
    embeddings: bool | None = Field(
        default=None, description="Whether the model makes embeddings. Left out: whatever its provider can do."
    )
    timeouts: TimeoutOverrides = Field(
        default=TimeoutOverrides(), description="Limits of a call, where not the provider's."
    )
    resilience: ResilienceOverrides = Field(
        default=ResilienceOverrides(),
        description="When one of its targets is in trouble or full, where not as the provider says.",
    )
    retries: Retries = Field(default=Retries(), description="How often its targets are asked again.")
    hedge: Hedge | None = Field(
        default=None,
        description="Another of its targets is asked too when the first keeps a request waiting. Left out: never.",
    )
    fallbacks: tuple[ModelName, ...] = Field(
        default=(),
        description="Models that are asked when all targets have failed before the answer began, in this order; after "
        "each, its own fallbacks.",
    )
    fallback_on: tuple[Literal["context_length_exceeded", "content_filtered"], ...] = Field(
        default=(), description="What else leads to the fallbacks: the prompt is too long, or was refused."
    )

    @model_validator(mode="after")
    def _what_the_policy_needs(self) -> "Model":
        tiers = self.tiers
        if isinstance(self.policy, PriorityPolicy):
            if len(self.policy.tiers) > len(tiers):
                raise Expected(f"at most as many `tiers` as the targets have priorities ({len(tiers)})")
        elif tiers != [0]:
            raise Expected("the policy `priority`, as a target has a `priority`")
        for target in self.targets:
            if isinstance(target, Target) and self.wants_price(target.priority) and target.price is None:
                raise Expected("a `price` for each target that the policy `lowest_cost` chooses from")
        return self

    @property
    def tiers(self) -> list[int]:
        """The priorities in use, ascending."""
        return sorted({target.priority for target in self.targets})

    def within(self, priority: int) -> InnerPolicy:
        """The policy among the targets of that priority."""
        return (
            self.policy.within(self.tiers.index(priority)) if isinstance(self.policy, PriorityPolicy) else self.policy
        )

    def wants_price(self, priority: int) -> bool:
        """Whether the policy asks the targets of that priority for a price."""
        return self.within(priority).kind == "lowest_cost"


class FlatModel(Model):
    """A model without references to others: their targets are in their place, with all that models say of theirs.

    Of what `Model` says about its targets (`context_window`, `capabilities`, `embeddings`, `timeouts`, `resilience`)
    only what each target has counts here.
    """

    if TYPE_CHECKING:
        targets: tuple[Target, ...]


class _Alias:
    """A model's value may be the name of another."""

    def _choose(self, value: Any, model: Callable[[Any], Model]) -> Model | str:
        if isinstance(value, str):
            return _NAME.validate_python(value)
        if not isinstance(value, dict | Model):
            raise Expected("a mapping, or the name of another model")
        return model(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        model = handler.generate_schema(Model)
        either = union_schema([str_schema(min_length=1), model])
        return no_info_wrap_validator_function(self._choose, model, json_schema_input_schema=either)


_NAME = TypeAdapter(ModelName)
Entry = Annotated[Model | str, _Alias(), Words("another model's name")]
"""What a model's name stands for: the model, or the name of another."""
