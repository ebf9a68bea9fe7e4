"""The models that clients ask for, and who answers them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmg.boot.settings.policies import PlainPolicy, Policy, PriorityPolicy
from llmg.boot.settings.problems import Expected
from llmg.boot.settings.providers import TimeoutOverrides
from llmg.boot.settings.types import NO_BOOLEAN, Count, Duration, ModelName, Money, Section, Share, Text


class Price(Section):
    """What a target's tokens cost, in USD per million tokens."""

    input: Money = Field(description="Of the prompt's tokens.")
    output: Money = Field(description="Of the answer's tokens.")


class Target(Section):
    """A model of a provider that may answer."""

    provider: Text = Field(description="The name of a provider declared under `providers`.")
    model: Text = Field(
        description="The provider's name of the model. For a backend: a packaged model, a path to a .gguf file, "
        "or the name of a file below models_dir."
    )
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] = Field(
        default=1.0,
        description="The share of requests that go here, relative to the other targets'; for policies that count what "
        "is in flight, the share of that.",
    )
    priority: Count = Field(
        default=0, description="With the policy `priority`: the tier. Lower ones are asked first; 0 is the first."
    )
    price: Price | None = Field(default=None, description="With the policy `lowest_cost`: what its tokens cost.")


class Retries(Section):
    """How often a model's targets are asked again, when all have failed before the answer began."""

    max: Count = Field(default=1, description="For one request, at most.")
    backoff: Duration = Field(
        default=0.1, description="The longest wait before the first; it doubles each time, and is drawn at random,"
    )
    max_backoff: Duration = Field(default=2.0, description="up to this.")
    budget: Share = Field(default=0.2, description="Retries per request, of all the model's: 0 to 1.")
    floor: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN] = Field(
        default=1.0, description="Retries per second that there may be all the same."
    )


class Model(Section):
    """A model that clients may ask for by name, and who answers it."""

    policy: Policy = Field(
        default=PlainPolicy(kind="weighted"),
        description="How a target is chosen: a policy's name, or `kind` and options. When a target fails before its "
        "answer began, the next is chosen among the others.",
    )
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = Field(description="Who may answer; at least one.")
    embeddings: bool | None = Field(
        default=None, description="Whether the model makes embeddings. Left out: whatever its provider can do."
    )
    timeouts: TimeoutOverrides = Field(
        default=TimeoutOverrides(), description="Limits of a call, where not the provider's."
    )
    retries: Retries = Field(default=Retries(), description="How often its targets are asked again.")
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
        tiers = sorted({target.priority for target in self.targets})
        if isinstance(self.policy, PriorityPolicy):
            if len(self.policy.tiers) > len(tiers):
                raise Expected(f"at most as many `tiers` as the targets have priorities ({len(tiers)})")
            asked = {tier: self.policy.within(place).kind for place, tier in enumerate(tiers)}
        else:
            if tiers != [0]:
                raise Expected("the policy `priority`, as a target has a `priority`")
            asked = {0: self.policy.kind}
        if any(asked[target.priority] == "lowest_cost" and target.price is None for target in self.targets):
            raise Expected("a `price` for each target that the policy `lowest_cost` chooses from")
        return self
