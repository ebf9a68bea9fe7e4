"""How a target is chosen: the policies and their options."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

from llmg.boot.settings.problems import Expected
from llmg.boot.settings.types import (
    Count,
    HeaderName,
    LoadFactor,
    PositiveCount,
    Section,
    Share,
    UpTo1h,
    UpTo24h,
    Words,
)


class PlainPolicy(Section):
    """A policy that has no options."""

    kind: Literal["weighted", "round_robin", "random", "least_busy", "lowest_cost"] = Field(
        description="weighted: in turns, by weight. round_robin: in turns. random: by chance and weight. least_busy: "
        "the fewest requests in flight for the weight. lowest_cost: the lowest price of this request."
    )


class P2C(Section):
    """Of two targets drawn at random, the one with the lower latency x requests in flight."""

    kind: Literal["p2c"] = Field(description="The better of two drawn at random.")
    decay: UpTo1h = Field(default=10.0, description="How long a latency counts; longer ago, ever less.")


class LowestLatency(Section):
    """The target with the lowest time to its first event."""

    kind: Literal["lowest_latency"] = Field(description="The lowest time to the first event.")
    decay: UpTo1h = Field(default=10.0, description="How long a latency counts; longer ago, ever less.")
    explore: Share = Field(
        default=0.05, description="The share of requests that go to the target not asked for longest, 0 to 1."
    )
    load_factor: LoadFactor = Field(
        default=1.25, description="How much more than its share of the requests in flight a target may have: 1 or more."
    )


class Sticky(Section):
    """Requests of one user or session go to one target, as long as it isn't overloaded."""

    kind: Literal["sticky"] = Field(description="One user or session, one target.")
    by: Literal["user", "session", "header"] = Field(default="user", description="What has to be the same.")
    header: HeaderName | None = Field(
        default=None, description="With `by: header`: the header's name (by gRPC, the metadata's)."
    )
    load_factor: LoadFactor = Field(
        default=1.25, description="How much more than its share of the requests in flight a target may have: 1 or more."
    )

    @model_validator(mode="after")
    def _a_header_if_by_header(self) -> "Sticky":
        if self.by == "header" and self.header is None:
            raise Expected("a `header`, as it goes `by` one")
        if self.by != "header" and self.header is not None:
            raise Expected("`by: header`, as there is a `header`")
        return self


class PrefixPolicy(Section):
    """Prompts that begin alike go to one target, whose cache holds the beginning, as long as it isn't overloaded."""

    kind: Literal["prefix"] = Field(description="Prompts that begin alike, one target.")
    block: PositiveCount = Field(default=512, description="Bytes of the prompt that are compared as one.")
    capacity: PositiveCount = Field(default=65_536, description="Blocks that are remembered; about 150 bytes each.")
    expiry: UpTo24h = Field(default=600.0, description="How long a block is remembered at least, after its last use.")
    load_factor: LoadFactor = Field(
        default=1.25, description="How much more than its share of the requests in flight a target may have: 1 or more."
    )
    slack: Count = Field(default=1, description="Requests in flight that it may have on top of that.")


class _Short:
    """A policy's name stands for the policy with its defaults: `p2c` is `{kind: p2c}`."""

    def __init__(self, *sections: type[Section]) -> None:
        self._kinds = [kind for one in sections for kind in get_args(one.model_fields["kind"].annotation)]

    def _long(self, value: object) -> object:
        if isinstance(value, str):
            if value not in self._kinds:
                raise Expected(f"one of {', '.join(self._kinds)}", choices=self._kinds, show=True)
            return {"kind": value}
        if isinstance(value, dict | Section):
            return value
        raise Expected("a policy's name, or a mapping with its `kind`", show=True)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._long, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "enum": self._kinds}, handler(schema)]}


InnerPolicy = PlainPolicy | P2C | LowestLatency | Sticky | PrefixPolicy
TierPolicy = Annotated[
    InnerPolicy, Field(discriminator="kind"), _Short(*get_args(InnerPolicy)), Words("a policy's name")
]


class PriorityPolicy(Section):
    """Targets in tiers: a tier is asked when all targets of the tiers before it have failed."""

    kind: Literal["priority"] = Field(description="In tiers, by the targets' `priority`.")
    tiers: Annotated[tuple[TierPolicy, ...], Field(min_length=1)] = Field(
        default=(PlainPolicy(kind="weighted"),),
        description="The policy within each tier, the first tier's first. The last one holds for all further tiers.",
    )

    def within(self, place: int) -> InnerPolicy:
        """The policy of the nth tier in use, from 0."""
        return self.tiers[min(place, len(self.tiers) - 1)]


Policy = Annotated[
    InnerPolicy | PriorityPolicy,
    Field(discriminator="kind"),
    _Short(*get_args(InnerPolicy), PriorityPolicy),
    Words("a policy's name"),
]
