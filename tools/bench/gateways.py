"""What is put side by side: one row per gateway, or per door of one.

A row is data. Its command and its configuration are filled in with

    {port} {upstream}   the port to listen on, the port of the mock upstream
    {python} {bin}      the project's interpreter and the folder of its scripts
    {here} {litellm}    this folder; the folder of LiteLLM's scripts, in an environment of its own
    {config}            the path of the configuration, written as JSON (which is YAML, too)

To add a gateway or a door: add a row. One that speaks another dialect gives its own `path` and `request`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

KEY = "sk-bench"

CHAT: Json = {
    "model": "mock",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Tell me a short story about a fox. " * 8},
    ],
    "temperature": 0.2,
    "max_tokens": 64,
}


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """How to start a gateway and what to ask it; no command: the mock upstream itself."""

    name: str
    command: tuple[str, ...] = ()
    config: Json | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    request: Json = field(default_factory=lambda: CHAT)
    ready_within: float = 20.0  # seconds
    asked_for: bool = False  # runs only when it is named


UPSTREAM = "upstream"
BASELINE = "passthrough"
OURS = "llmg"
LITELLM = "litellm"

GATEWAYS = (
    Gateway(name=UPSTREAM),
    Gateway(name=BASELINE, command=("{python}", "{here}/passthrough.py", "{port}", "{upstream}")),
    Gateway(
        name=OURS,
        command=("{bin}/llmg", "serve", "-c", "{config}"),
        config={
            "http": {"server_addr": "127.0.0.1:{port}"},
            "grpc": {"enabled": False},
            "providers": {"mock": {"kind": "openai", "base_url": "http://127.0.0.1:{upstream}/v1", "api_key": KEY}},
            "models": {"mock": {"targets": [{"provider": "mock", "model": "mock"}]}},
        },
    ),
    Gateway(
        name=LITELLM,
        command=("{litellm}/litellm", "--config", "{config}", "--host", "127.0.0.1", "--port", "{port}"),
        config={
            "model_list": [
                {
                    "model_name": "mock",
                    "litellm_params": {
                        "model": "openai/mock",
                        "api_base": "http://127.0.0.1:{upstream}/v1",
                        "api_key": KEY,
                    },
                }
            ],
        },
        environment={
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches the prices when it starts
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no keys, as the others here
        },
        ready_within=120.0,
        asked_for=True,
    ),
)


def filled(template: Any, values: Mapping[str, str]) -> Any:
    """The template with each {name} in its strings replaced; other braces are left alone."""
    if isinstance(template, str):
        for name, value in values.items():
            template = template.replace("{" + name + "}", value)
        return template
    if isinstance(template, Mapping):
        return {key: filled(value, values) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [filled(item, values) for item in template]
    return template
