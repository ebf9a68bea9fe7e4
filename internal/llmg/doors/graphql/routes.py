"""Where a request would go, in GraphQL's manner: the gateway's own messages, and the query that asks for them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final

import strawberry

from llmg.core import explanation as core
from llmg.core.errors import Failure, not_implemented
from llmg.doors.graphql import errors
from llmg.doors.graphql.asking import Info
from llmg.doors.graphql.inputs import ExplainRouteInput, decode_explain
from llmg.services.explain import LEVEL


@strawberry.enum(description="Whether a target may be asked.")
class Verdict(Enum):
    """See `core.explanation.Verdict`."""

    CANDIDATE = strawberry.enum_value("candidate", description="It may.")
    REJECTED = strawberry.enum_value("rejected", description="It may not.")


@strawberry.type(description="Prices, in USD per million tokens.")
class TokenPrice:
    """See `core.prices.Price`."""

    input: float = strawberry.field(description="Of a prompt's tokens.")
    output: float = strawberry.field(description="Of an answer's tokens.")


@strawberry.type(description="Something that an operator says of a target.")
class Label:
    """A name and a value."""

    name: str = strawberry.field(description="What it is about.")
    value: str = strawberry.field(description="What is said.")


@strawberry.type(description="A target, and what would become of it.")
class RouteTarget:
    """See `core.explanation.Candidate`."""

    provider: str = strawberry.field(description="Its provider.")
    model: str = strawberry.field(description="The provider's name of the model.")
    verdict: Verdict = strawberry.field(description="Whether it may be asked.")
    place: int | None = strawberry.field(
        description="Its place in the order of all targets on the way, from 1; null for one that is rejected."
    )
    score: float | None = strawberry.field(
        description="What the policy makes of it; the reason says what the number is."
    )
    reason: str = strawberry.field(description="Why it has this place, or why it is rejected.")
    weight: float = strawberry.field(description="Its weight.")
    tier: int | None = strawberry.field(description="Its tier, where the policy is `priority`.")
    price: TokenPrice | None = strawberry.field(description="What its tokens cost, where that is known.")
    context_window: int | None = strawberry.field(
        description="How many tokens a prompt and its answer may have together, where that is known."
    )
    capabilities: list[str] = strawberry.field(
        description="What it is known to be capable of: tools, vision, json_schema, reasoning, audio."
    )
    region: str = strawberry.field(description="Where it is, as its operator calls it.")
    labels: list[Label] = strawberry.field(description="What its operator says of it.")


@strawberry.type(description="One model on the way, and its targets.")
class RouteStage:
    """See `core.explanation.Stage`."""

    model: str = strawberry.field(description="The model's name.")
    policy: str = strawberry.field(description="The kind of the policy that chooses among its targets.")
    targets: list[RouteTarget] = strawberry.field(
        description="Its targets: those that may be asked, in the order in which they would be, and then the others."
    )


@strawberry.type(description="The way that a request would take.")
class Route:
    """See `core.explanation.Explanation`."""

    model: str = strawberry.field(description="The model's name, as it was asked for.")
    stages: list[RouteStage] = strawberry.field(
        description="The model, and then its fallbacks, in the order in which they would be asked."
    )


_Input = Annotated[ExplainRouteInput, strawberry.argument(description="The request, as it would be made.")]
_Level = Annotated[
    str,
    strawberry.argument(
        description="The level of the catalog as whose clients would ask, such as `tenants/acme/teams/search`: for "
        "administrators. Empty: what the caller may ask for itself. Limits that count this are the "
        "caller's all the same."
    ),
]
_VERDICTS: Final = {verdict.name.lower(): verdict for verdict in Verdict}


async def explain_route(info: Info, input: _Input, level: _Level = "") -> Route:
    """Which targets would be asked now, in which order, and why; nobody is."""
    with info.context.answering() as context:
        explain = info.context.gateway.explain
        if explain is None:
            raise not_implemented("the explanation of routes")
        try:
            return _route(await explain.explain(decode_explain(input), context, level))
        except Failure as failure:
            if failure.param != LEVEL:
                errors.within(failure, "chat" if input.chat else "embeddings")
            raise


def _route(explanation: core.Explanation) -> Route:
    return Route(model=explanation.model, stages=[_stage(stage) for stage in explanation.stages])


def _stage(stage: core.Stage) -> RouteStage:
    return RouteStage(model=stage.model, policy=stage.policy, targets=[_target(one) for one in stage.targets])


def _target(one: core.Candidate) -> RouteTarget:
    price = one.price
    return RouteTarget(
        provider=one.provider,
        model=one.model,
        verdict=_VERDICTS[one.verdict],
        place=one.place,
        score=one.score,
        reason=one.reason,
        weight=one.weight,
        tier=one.tier,
        price=None if price is None else TokenPrice(input=price.input, output=price.output),
        context_window=one.context_window,
        capabilities=list(one.capabilities),
        region=one.region,
        labels=[Label(name=name, value=value) for name, value in one.labels.items()],
    )
