"""`PredictOptions` -> a request in the shape of llama.cpp's server.

Numbers of the contract have no presence. A value is taken as said, but where 0 makes no sense (`ZERO_IS_UNSET`): then
llama.cpp's own default holds. So a caller sends Temperature 0 for greedy and Seed -1 for a random one.
`TailFreeSamplingZ` and `PenalizeNL` are gone from llama.cpp, and the rest of `PredictOptions` is about loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from llmg.backendapi import backend_pb2 as pb
from llmg.backends.servicer import StatusError

ZERO_IS_UNSET = True
AS_SAID = False

# field of PredictOptions: (llama.cpp's name, what 0 means)
SAMPLING: dict[str, tuple[str, bool]] = {
    "Temperature": ("temperature", AS_SAID),  # 0: greedy
    "TopK": ("top_k", AS_SAID),  # 0: all
    "TopP": ("top_p", ZERO_IS_UNSET),
    "MinP": ("min_p", AS_SAID),  # 0: off
    "TypicalP": ("typical_p", ZERO_IS_UNSET),
    "Penalty": ("repeat_penalty", ZERO_IS_UNSET),
    "Repeat": ("repeat_last_n", AS_SAID),  # 0: none
    "FrequencyPenalty": ("frequency_penalty", AS_SAID),
    "PresencePenalty": ("presence_penalty", AS_SAID),
    "Mirostat": ("mirostat", AS_SAID),  # 0: off
    "MirostatTAU": ("mirostat_tau", ZERO_IS_UNSET),
    "MirostatETA": ("mirostat_eta", ZERO_IS_UNSET),
    "Seed": ("seed", AS_SAID),  # -1: random
    "NKeep": ("n_keep", AS_SAID),
    "IgnoreEOS": ("ignore_eos", AS_SAID),
    "Tokens": ("max_tokens", ZERO_IS_UNSET),  # 0: until the model or the context ends
}

# What makes llama.cpp report while it works: a call can be cancelled only when it reports.
REPORTING: dict[str, Any] = {
    "stream": True,
    "return_progress": True,
    "timings_per_token": True,
    "stream_options": {"include_usage": True},
}


@dataclass(frozen=True)
class Prompt:
    """A request for llama.cpp: `chat` says whether it has messages or a finished prompt."""

    chat: bool
    body: dict[str, Any]
    top_logprobs: int


def prompt(options: pb.PredictOptions) -> Prompt:
    """The request. Raises StatusError INVALID_ARGUMENT naming the field that can't be used."""
    chat = not options.Prompt
    body = REPORTING | _sampling(options) | _constraint(options.Grammar)
    body |= _messages(options) if chat else _finished(options)
    if options.LogitBias:
        body["logit_bias"] = _json("LogitBias", options.LogitBias, dict)
    if options.StopPrompts:
        body["stop"] = list(options.StopPrompts)
    if options.Logprobs > 0:
        # llama.cpp counts alternatives; with none it would give no probabilities at all
        body["n_probs" if not chat else "top_logprobs"] = max(options.TopLogprobs, 1)
        body["logprobs"] = True
    return Prompt(chat, body, max(options.TopLogprobs, 0))


def refused(message: str) -> StatusError:
    """The caller's fault."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _sampling(options: pb.PredictOptions) -> dict[str, Any]:
    given = ((name, getattr(options, field), zero) for field, (name, zero) in SAMPLING.items())
    return {name: value for name, value, zero_is_unset in given if value or not zero_is_unset}


def _constraint(grammar: str) -> dict[str, Any]:
    """A JSON object is a schema, other text a grammar in GBNF."""
    if not grammar.strip():
        return {}
    if grammar.lstrip().startswith("%"):
        raise refused("Grammar: only JSON schemas and GBNF are supported")  # llama.cpp would try llguidance
    try:
        schema = json.loads(grammar)
    except ValueError:
        return {"grammar": grammar}
    return {"json_schema": schema} if isinstance(schema, dict) else {"grammar": grammar}


def schema_probe(asked: Prompt) -> dict[str, Any] | None:
    """A request whose one token is "#" when the schema would not be kept to; None when there is nothing to find out.

    For messages llama.cpp refuses a schema that it can't compile. For a finished prompt it says so in its log only,
    and answers without a constraint. No JSON begins with "#".
    """
    if asked.chat or "json_schema" not in asked.body:
        return None
    schema = asked.body["json_schema"]
    return REPORTING | {
        "prompt": "#",
        "json_schema": schema,
        "max_tokens": 1,
        "temperature": 0,
        "logit_bias": [["#", 100]],
    }


def _finished(options: pb.PredictOptions) -> dict[str, Any]:
    if options.Images or options.Videos or options.Audios:
        raise refused("Images, Videos and Audios need Messages, not a finished Prompt")
    return {"prompt": options.Prompt}


def _messages(options: pb.PredictOptions) -> dict[str, Any]:
    if not options.Messages:
        raise refused("there is nothing to answer: Prompt and Messages are both empty")
    messages = [_message(message) for message in options.Messages]
    _attach(options, messages)
    body: dict[str, Any] = {"messages": messages}
    if options.Tools:
        body["tools"] = _json("Tools", options.Tools, list)
    if options.Tools and options.ToolChoice:
        body["tool_choice"] = _tool_choice(options.ToolChoice)
    if kwargs := _template_kwargs(options):
        body["chat_template_kwargs"] = kwargs
    return body


def _message(message: pb.Message) -> dict[str, Any]:
    if not message.role:
        raise refused("a message has no role")
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    for field in ("name", "tool_call_id", "reasoning_content"):
        if value := getattr(message, field):
            given[field] = value
    if message.tool_calls:
        given["tool_calls"] = _json("Messages.tool_calls", message.tool_calls, list)
    return given


def _attach(options: pb.PredictOptions, messages: list[dict[str, Any]]) -> None:
    """Puts the images and sounds, which come apart from the messages, into the last of the user's."""
    if options.Videos:
        raise refused("Videos are not supported")
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}} for data in options.Images
    ]
    parts += [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}} for data in options.Audios]
    if not parts:
        return
    last = next((message for message in reversed(messages) if message["role"] == "user"), None)
    if last is None:
        raise refused("Images and Audios need a message of the user")
    last["content"] = [*parts, {"type": "text", "text": last["content"]}]


def _tool_choice(text: str) -> Any:
    """`auto`, `"auto"` and `{"type": "function", ...}` are all in use."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _template_kwargs(options: pb.PredictOptions) -> dict[str, Any]:
    return {
        key: value
        for name, read in TEMPLATE_METADATA.items()
        if name in options.Metadata
        for key, value in read(options.Metadata[name]).items()
    }


def _thinking(text: str) -> dict[str, Any]:
    if text.lower() not in {"true", "false"}:
        raise refused(f"Metadata enable_thinking: {text!r} is neither true nor false")
    return {"enable_thinking": text.lower() == "true"}


def _effort(text: str) -> dict[str, Any]:
    return {"reasoning_effort": text}


def _kwargs(text: str) -> dict[str, Any]:
    return dict(_json("Metadata chat_template_kwargs", text, dict))


# key of Metadata: its share of the template's arguments; later rows win
TEMPLATE_METADATA: dict[str, Callable[[str], dict[str, Any]]] = {
    "enable_thinking": _thinking,
    "reasoning_effort": _effort,
    "chat_template_kwargs": _kwargs,
}


def _json(field: str, text: str, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise refused(f"{field} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise refused(f"{field} is not a JSON {'object' if kind is dict else 'list'}")
    return value
