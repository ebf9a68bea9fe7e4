"""Encoded answers, byte for byte: `golden/NAME.json` and, of the same events streamed, `golden/NAME.sse`.

Where OpenAI's OpenAPI document is at hand (`LLMG_OPENAI_SPEC`, or beside the repository), they are held against its
schemas, too.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from msgspec import UNSET
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from llmg.core.assemble import assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    Closed,
    Delta,
    Embedding,
    Embeddings,
    Event,
    Extra,
    Finished,
    Opened,
    Result,
    Started,
    TokenLogprob,
)
from llmg.core.request import Embed
from llmg.core.usage import Usage
from llmg.wire import sse
from llmg.wire.openai.answers import encode_answer
from llmg.wire.openai.chunks import ChunkEncoder
from llmg.wire.openai.embeddings import encode_embeddings
from llmg.wire.openai.errors import encode_error

GOLDEN = Path(__file__).parent / "golden"
_ROOT = Path(__file__).parents[2]
SPEC = Path(os.environ.get("LLMG_OPENAI_SPEC") or _ROOT.parent / "shared/data/openai/openapi.json")

_STARTED = Started("0af7651916cd43dd8448eb21", 1_760_000_000, "upstream-model", "fp_1", "default")
_TOKENS = (
    TokenLogprob("Hé", -0.25, (72, 195, 169), (TokenLogprob("Ha", -1.5, (72, 97)),)),
    TokenLogprob("!", -9999.0, None),
)
CHATS: dict[str, list[Event]] = {
    "text": [
        _STARTED,
        Opened(0, 0, "text"),
        Delta(0, 0, 'He said "hi"\n'),
        Delta(0, 0, "naïve 🙂"),
        Closed(0, 0),
        Finished(0, "stop"),
        Usage(input_tokens=9, output_tokens=5, cached_tokens=4),
    ],
    "choices-with-logprobs": [
        _STARTED,
        Opened(0, 0, "text"),
        Opened(1, 0, "refusal"),
        Delta(0, 0, "Hé", _TOKENS[:1]),
        Delta(1, 0, "No", _TOKENS[1:]),
        Delta(0, 0, "!", _TOKENS[1:]),
        Closed(1, 0),
        Finished(1, "content_filter"),
        Closed(0, 0),
        Finished(0, "length"),
        Usage(input_tokens=9, output_tokens=3),
    ],
    "tool-calls": [
        _STARTED,
        Opened(0, 0, "tool", "call_1", "weather"),
        Opened(0, 1, "tool", "call_2", "time"),
        Delta(0, 0, '{"city":'),
        Delta(0, 1, "{}"),
        Delta(0, 0, '"Oslo"}'),
        Closed(0, 0),
        Closed(0, 1),
        Finished(0, "tool_calls"),
    ],
    "reasoning-and-unknown-fields": [
        Started("a", 1_760_000_000, "u", extra=Extra(dialect="openai", envelope={"provider": "p"})),
        Opened(0, 0, "reasoning"),
        Delta(0, 0, "Hm."),
        Closed(0, 0),
        Opened(0, 1, "text"),
        Delta(0, 1, "42", UNSET, Extra(dialect="openai", choice={"seen": True}, item={"mood": "calm"})),
        Closed(0, 1),
        Finished(0, "stop"),
        Usage(input_tokens=1, output_tokens=2, reasoning_tokens=1, extra=Extra(dialect="openai", item={"cost": 0.01})),
    ],
    "nothing": [_STARTED, Finished(0, "stop")],
}


@cache
def _validator(schema: str) -> Draft202012Validator | None:
    """OpenAI's own schema of that name; None where the document is not at hand."""
    if not SPEC.is_file():
        return None
    document = _modern(json.loads(SPEC.read_bytes()))
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("urn:openai", resource)
    return Draft202012Validator({"$ref": f"urn:openai#/components/schemas/{schema}"}, registry=registry)


def _modern(node: Any) -> Any:
    """OpenAPI 3.0's `nullable`, of which some is left in the document, as JSON schema says it."""
    if isinstance(node, list):
        return [_modern(item) for item in node]
    if not isinstance(node, dict):
        return node
    modern = {name: _modern(value) for name, value in node.items() if name != "nullable"}
    return {"anyOf": [modern, {"type": "null"}]} if node.get("nullable") is True else modern


def _assert_valid(body: bytes, schema: str) -> None:
    validator = _validator(schema)
    if validator is not None:
        validator.validate(json.loads(body))


@pytest.mark.parametrize("name", CHATS)
def test_whole_answers(name: str) -> None:
    body = encode_answer(assemble(CHATS[name]), "smollm2")
    assert body + b"\n" == (GOLDEN / f"{name}.json").read_bytes()
    _assert_valid(body, "CreateChatCompletionResponse")


@pytest.mark.parametrize("name", CHATS)
def test_streams(name: str) -> None:
    body = ChunkEncoder("smollm2", include_usage=True).encode(CHATS[name]) + sse.DONE
    assert body == (GOLDEN / f"{name}.sse").read_bytes()
    chunks = sse.Decoder().feed(body)
    assert chunks[-1].data == b"[DONE]"
    for chunk in chunks[:-1]:
        _assert_valid(chunk.data, "CreateChatCompletionStreamResponse")


@pytest.mark.parametrize("packed", [False, True])
def test_embeddings(packed: bool) -> None:
    vectors = Embeddings((Embedding(0, (0.5, -1.0)), Embedding(1, (0.25, 2.0))))
    answer = assemble([_STARTED, Result(vectors), Usage(input_tokens=4)])
    body = encode_embeddings(answer, Embed(model="smollm2", inputs=("a", "b"), packed=packed))
    assert body + b"\n" == (GOLDEN / f"embeddings-{'base64' if packed else 'float'}.json").read_bytes()
    if not packed:  # the document knows vectors of numbers only
        _assert_valid(body, "CreateEmbeddingResponse")


def test_error() -> None:
    body = encode_error(Failure(Kind.INVALID_REQUEST, "invalid 'n': expected `int <= 128`", param="n"))
    assert body + b"\n" == (GOLDEN / "error.json").read_bytes()
    _assert_valid(body, "ErrorResponse")


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_of_error_has_the_dialects_shape(kind: Kind) -> None:
    body = encode_error(Failure(kind, "words"))
    assert json.loads(body)["error"] == {
        "message": "words",
        "type": json.loads(body)["error"]["type"],
        "param": None,
        "code": kind.value,
    }
    _assert_valid(body, "ErrorResponse")
