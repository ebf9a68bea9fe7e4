"""Explanations of routes in the gateway's own gRPC messages. Pure."""

from __future__ import annotations

from typing import Any, Final

from llmg.core.errors import invalid
from llmg.core.explanation import Candidate, Explanation, Stage
from llmg.core.prices import Price
from llmg.core.request import Request
from llmg.gatewayapi.v1 import routing_pb2 as pb
from llmg.wire.gateway import chat_path, decode_chat, decode_embed, embed_path

_VERDICTS: Final = {
    "candidate": pb.RouteTarget.VERDICT_CANDIDATE,
    "rejected": pb.RouteTarget.VERDICT_REJECTED,
}


def decode_request(given: pb.ExplainRouteRequest) -> Request:
    """The request whose route is asked for. Raises Failure (invalid_request) naming the field."""
    match given.WhichOneof("request"):
        case "chat":
            return decode_chat(given.chat, stream=False)
        case "embeddings":
            return decode_embed(given.embeddings)
    raise invalid("invalid 'chat': it or 'embeddings' is required", "chat")


def path(given: pb.ExplainRouteRequest, param: str) -> str:
    """The path in the message of what pipelines call `param`."""
    if param == "level":  # it is none of the request's
        return param
    if given.WhichOneof("request") == "embeddings":
        return f"embeddings.{embed_path(param)}"
    found = chat_path(param)
    return param if found is None else f"chat.{found}"


def encode_explanation(explanation: Explanation) -> pb.ExplainRouteResponse:
    """All of it."""
    stages = [_stage(stage) for stage in explanation.stages]
    return pb.ExplainRouteResponse(model=explanation.model, stages=stages)


def _stage(stage: Stage) -> pb.RouteStage:
    return pb.RouteStage(model=stage.model, policy=stage.policy, targets=[_target(one) for one in stage.targets])


def _target(one: Candidate) -> pb.RouteTarget:
    price = one.price
    return pb.RouteTarget(
        provider=one.provider,
        model=one.model,
        verdict=_VERDICTS[one.verdict],
        place=one.place,
        score=one.score,
        reason=one.reason,
        weight=one.weight,
        tier=one.tier,
        price=None if price is None else pb.TokenPrice(input=price.input, output=price.output),
        context_window=one.context_window,
        capabilities=one.capabilities,
        region=one.region,
        labels=one.labels,
    )


def decode_explanation(given: pb.ExplainRouteResponse) -> Explanation:
    """The same, the other way."""
    return Explanation(model=given.model, stages=tuple([_decoded_stage(stage) for stage in given.stages]))


def _decoded_stage(given: pb.RouteStage) -> Stage:
    return Stage(model=given.model, policy=given.policy, targets=tuple([_decoded(one) for one in given.targets]))


def _decoded(given: pb.RouteTarget) -> Candidate:
    def known(name: str) -> Any:
        return getattr(given, name) if given.HasField(name) else None

    price = known("price")
    return Candidate(
        provider=given.provider,
        model=given.model,
        verdict="candidate" if given.verdict == pb.RouteTarget.VERDICT_CANDIDATE else "rejected",
        place=known("place"),
        score=known("score"),
        reason=given.reason,
        weight=given.weight,
        tier=known("tier"),
        price=None if price is None else Price(input=price.input, output=price.output),
        context_window=known("context_window"),
        capabilities=tuple(given.capabilities),
        region=given.region,
        labels=dict(given.labels),
    )
