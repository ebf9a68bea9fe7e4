"""The scenarios of vectors: what is asked, what the provider does, and what a client must learn."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from llmg.core.errors import Failure, Kind
from llmg.core.events import Embedding, Embeddings, Result
from llmg.core.request import MAX_DIMENSIONS, MAX_INPUTS
from llmg.core.usage import Usage
from llmg.testing.scripted import Script
from scenarios.asking import Told, vectors_asked
from scenarios.rows import START, Scenario

READ = Usage(input_tokens=11)
ONE: tuple[Embedding, ...] = (Embedding(0, (0.5, -0.25, 1.0)),)
TWO: tuple[Embedding, ...] = (*ONE, Embedding(1, (0.0, 2.0**-20, -3.5)))
TEXT: dict[str, Any] = {"openai": {"input": "Hello"}, "gateway": {"inputs": [{"text": "Hello"}]}}
TEXTS: dict[str, Any] = {
    "openai": {"input": ["Hello", "Grüße \U0001f44b"]},
    "gateway": {"inputs": [{"text": "Hello"}, {"text": "Grüße \U0001f44b"}]},
}


def gives(*vectors: Embedding) -> Script:
    """A provider that answers so."""
    return Script(steps=[[START, Result(Embeddings(vectors)), READ]])


def given(*vectors: Embedding) -> Told:
    """What is told of them. The values here are such that fit into float32."""
    return Told(vectors=tuple((one.index, tuple(one.values)) for one in vectors), usage=READ)


def embeds(*vectors: Embedding, openai: Mapping[str, Any], gateway: Mapping[str, Any]) -> Scenario:
    """A request for these vectors."""
    return Scenario(script=gives(*vectors), told=given(*vectors), asked=vectors_asked(openai=openai, gateway=gateway))


def embeds_not(field: str, *, openai: Mapping[str, Any], gateway: Mapping[str, Any]) -> Scenario:
    """A request that no provider gets to see, because of this field."""
    return Scenario(
        script=Script(),
        told=Told(failure=Kind.INVALID_REQUEST, field=field),
        asked=vectors_asked(openai=openai, gateway=gateway),
    )


def embeds_badly(script: Script, told: Told) -> Scenario:
    """A good request that a provider fails."""
    return Scenario(script=script, told=told, asked=vectors_asked(**TEXT))


def also(base: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A request with these fields, which are called the same everywhere."""
    return {shape: {**given, **fields} for shape, given in base.items()}


VECTORS: dict[str, Scenario] = {
    "a text": embeds(*ONE, **TEXT),
    "a text in a list": embeds(*ONE, openai={"input": ["Hello"]}, gateway=TEXT["gateway"]),
    "texts": embeds(*TWO, **TEXTS),
    "tokens": embeds(
        *ONE,
        openai={"input": [[15339, 0, 2**31 - 1]]},
        gateway={"inputs": [{"tokens": {"ids": [15339, 0, 2**31 - 1]}}]},
    ),
    "lists of tokens": embeds(
        *TWO,
        openai={"input": [[1, 2], [3]]},
        gateway={"inputs": [{"tokens": {"ids": [1, 2]}}, {"tokens": {"ids": [3]}}]},
    ),
    "as many inputs as there may be": embeds(
        *ONE, openai={"input": ["x"] * MAX_INPUTS}, gateway={"inputs": [{"text": "x"}] * MAX_INPUTS}
    ),
    "so many dimensions": embeds(*ONE, **also(TEXT, dimensions=3)),
    "for whom": embeds(*ONE, **also(TEXT, user="u")),
    "vectors that the upstream packed": embeds_badly(
        gives(*[Embedding(one.index, struct.pack("<3f", *one.values)) for one in TWO]), given(*TWO)
    ),
    "in the upstream's own order": embeds_badly(gives(*reversed(TWO)), given(*reversed(TWO))),
    "not opened": embeds_badly(
        Script(at_open=Failure(Kind.MODEL_NOT_FOUND, "no such model", param="model")),
        Told(failure=Kind.MODEL_NOT_FOUND, field="model"),
    ),
    "not entered": embeds_badly(
        Script(at_enter=Failure(Kind.UPSTREAM_RATE_LIMITED, "later", retry_after=1.0)),
        Told(failure=Kind.UPSTREAM_RATE_LIMITED, retry_after=1.0),
    ),
    "the upstream's error": embeds_badly(
        Script(steps=[[START], Failure(Kind.UPSTREAM_ERROR, "that went wrong")]), Told(failure=Kind.UPSTREAM_ERROR)
    ),
    "a field that the upstream refuses": embeds_badly(
        Script(at_enter=Failure(Kind.INVALID_REQUEST, "not with this model", param="dimensions")),
        Told(failure=Kind.INVALID_REQUEST, field="dimensions"),
    ),
    "an input that the upstream refuses": embeds_badly(
        Script(at_enter=Failure(Kind.CONTEXT_LENGTH_EXCEEDED, "too long", param="input")),
        Told(failure=Kind.CONTEXT_LENGTH_EXCEEDED, field="input"),
    ),
    "our own mistake": embeds_badly(Script(steps=[ValueError("a secret")]), Told(failure=Kind.INTERNAL)),
    "no model": embeds_not("model", **also(TEXT, model="")),
    "no input": embeds_not("input", openai={"input": []}, gateway={"inputs": []}),
    "an empty text": embeds_not("input", openai={"input": [""]}, gateway={"inputs": [{"text": ""}]}),
    "an empty text beside another": embeds_not(
        "input", openai={"input": ["a", ""]}, gateway={"inputs": [{"text": "a"}, {"text": ""}]}
    ),
    "an empty list of tokens": embeds_not(
        "input", openai={"input": [[]]}, gateway={"inputs": [{"tokens": {"ids": []}}]}
    ),
    "too many inputs": embeds_not(
        "input", openai={"input": ["x"] * (MAX_INPUTS + 1)}, gateway={"inputs": [{"text": "x"}] * (MAX_INPUTS + 1)}
    ),
    "no dimensions": embeds_not("dimensions", **also(TEXT, dimensions=0)),
    "too many dimensions": embeds_not("dimensions", **also(TEXT, dimensions=MAX_DIMENSIONS + 1)),
}
