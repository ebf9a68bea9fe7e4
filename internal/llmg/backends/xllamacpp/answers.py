"""llama.cpp's chunks -> `Reply`, and its errors -> statuses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from llmg.backendapi import backend_pb2 as pb
from llmg.backends.servicer import StatusError

Chunk = dict[str, Any]  # one object of llama.cpp's server, in OpenAI's shape

CONTEXT_LENGTH = {"llmg-error-kind": "context_length_exceeded"}

# type of llama.cpp's error: (status, trailing metadata)
ERRORS: dict[str, tuple[grpc.StatusCode, Mapping[str, str]]] = {
    "invalid_request_error": (grpc.StatusCode.INVALID_ARGUMENT, {}),
    "exceed_context_size_error": (grpc.StatusCode.INVALID_ARGUMENT, CONTEXT_LENGTH),
    "not_supported_error": (grpc.StatusCode.FAILED_PRECONDITION, {}),
    "not_found_error": (grpc.StatusCode.NOT_FOUND, {}),
    "unavailable_error": (grpc.StatusCode.UNAVAILABLE, {}),
    "server_error": (grpc.StatusCode.INTERNAL, {}),
}


def status(error: Mapping[str, Any]) -> StatusError:
    """`{"code", "message", "type"}` -> the status with llama.cpp's own words."""
    message = str(error.get("message", "llama.cpp gave no reason"))
    if "is too large to process" in message:  # of a text for a vector; llama.cpp calls it its own fault
        return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message, CONTEXT_LENGTH)
    code, trailing = ERRORS.get(str(error.get("type")), (grpc.StatusCode.INTERNAL, {}))
    return StatusError(code, message, trailing)


class Answer:
    """Reads the chunks of one call, in order. `finish_reason` is empty until the answer is complete."""

    def __init__(self, top_logprobs: int = 0) -> None:
        self.finish_reason = ""
        self.cached_tokens = 0
        self.tokens_per_second = 0.0
        self._top_logprobs = top_logprobs
        self._counts: dict[str, Any] = {}  # the cumulative fields of Reply

    def read(self, chunks: Iterable[Chunk]) -> pb.Reply | None:
        """What is new in these chunks; None when nothing is. Raises the StatusError that llama.cpp ended with."""
        text: list[str] = []
        deltas: list[pb.ChatDelta] = []
        logprobs: list[Any] = []
        complete = False
        for chunk in chunks:
            if "error" in chunk:
                raise status(chunk["error"])
            self._count(chunk)
            for choice in chunk.get("choices", ()):
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                logprobs += self._logprobs(choice)
                text.append(_read_choice(choice, deltas))
            complete = complete or "usage" in chunk
        if not (complete or deltas or logprobs or any(text)):
            return None
        reply = pb.Reply(message="".join(text).encode(errors="replace"), chat_deltas=deltas, **self._counts)
        if logprobs:
            reply.logprobs = json.dumps({"content": logprobs}).encode()
        return reply

    def trailing(self, model: str) -> tuple[tuple[str, str], ...]:
        """Trailing metadata of a complete answer. Raises StatusError when it is not complete."""
        if not self.finish_reason:
            raise StatusError(grpc.StatusCode.INTERNAL, "llama.cpp ended without finishing its answer")
        return (
            ("llmg-finish-reason", self.finish_reason),
            ("llmg-cached-tokens", str(self.cached_tokens)),
            ("llmg-model", model.encode("ascii", "replace").decode()),  # metadata is ASCII
        )

    def _count(self, chunk: Chunk) -> None:
        if timings := chunk.get("timings"):
            self.cached_tokens = timings["cache_n"]
            self.tokens_per_second = timings["predicted_per_second"]
            self._counts = {
                "tokens": timings["predicted_n"],
                "prompt_tokens": timings["cache_n"] + timings["prompt_n"],
                "timing_prompt_processing": timings["prompt_ms"],
                "timing_token_generation": timings["predicted_ms"],
            }
        if usage := chunk.get("usage"):
            self._counts |= {"tokens": usage["completion_tokens"], "prompt_tokens": usage["prompt_tokens"]}

    def _logprobs(self, choice: Chunk) -> list[Any]:
        content = (choice.get("logprobs") or {}).get("content") or []
        return [token | {"top_logprobs": token["top_logprobs"][: self._top_logprobs]} for token in content]


def _read_choice(choice: Chunk, deltas: list[pb.ChatDelta]) -> str:
    """Adds the choice's deltas, and gives its text. A finished prompt has text only: nothing was parsed."""
    if "text" in choice:
        return choice["text"] or ""
    delta = choice.get("delta") or {}
    if reasoning := delta.get("reasoning_content"):
        _extend(deltas, "reasoning_content", reasoning)
    if content := delta.get("content"):
        _extend(deltas, "content", content)
    if calls := delta.get("tool_calls"):
        deltas.append(pb.ChatDelta(tool_calls=[_tool_call(call) for call in calls]))
    return content or ""


def _extend(deltas: list[pb.ChatDelta], field: str, text: str) -> None:
    """Text goes on where the last delta has only text of its kind; else it opens a new one: order is kept."""
    if not (deltas and getattr(deltas[-1], field)):
        deltas.append(pb.ChatDelta())
    setattr(deltas[-1], field, getattr(deltas[-1], field) + text)


def _tool_call(call: Chunk) -> pb.ToolCallDelta:
    function = call.get("function") or {}
    return pb.ToolCallDelta(
        index=call.get("index", 0),
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments=function.get("arguments") or "",
    )
