"""Asking a second target when the first keeps a request waiting."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from llmg.boot.settings import units
from llmg.boot.settings.problems import Expected
from llmg.boot.settings.types import NO_BOOLEAN, Seconds, Section, Words

_SECONDS = Seconds(60)


def _after(value: object) -> float | Literal["p95"]:
    if value == "p95":
        return "p95"
    try:
        units.duration(value)
    except Expected:
        raise Expected("p95, or a duration such as 500ms", show=True) from None
    return _SECONDS.read(value)


After = Annotated[
    float | Literal["p95"],
    BeforeValidator(_after),
    WithJsonSchema({"anyOf": [{"const": "p95"}, *_SECONDS.schema()["anyOf"]]}),
    Words(f"`p95`, or duration, {_SECONDS.range}"),
]


class Hedge(Section):
    """Another target is asked too when the first keeps a request waiting. The first whose answer begins gives it."""

    after: After = Field(
        default="p95",
        description="When: after a time, or `p95`, after the time in which 95 of 100 answers of the model begin.",
    )
    max: Annotated[int, Field(ge=1, le=5), NO_BOOLEAN] = Field(
        default=1, description="How many more targets are asked for one request, each after as long again."
    )
    budget: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = Field(
        default=0.05, description="The share of the model's requests for which it is done: above 0, up to 1."
    )
