"""The configuration: its shape, where it is read from, and what can be wrong with it.

`load` gives the `Settings`, or raises `SettingsError` with all that is wrong. Nothing else in llmg imports pydantic.
"""

from llmg.boot.settings.loading import files, load
from llmg.boot.settings.problems import Problem, SettingsError
from llmg.boot.settings.schema import json_schema, schema_text
from llmg.boot.settings.shape import (
    BackendProvider,
    EchoProvider,
    Grpc,
    Http,
    Log,
    Model,
    OpenAIProvider,
    Provider,
    Server,
    Settings,
    Target,
    TimeoutOverrides,
    Timeouts,
    Tls,
)

__all__ = [
    "BackendProvider",
    "EchoProvider",
    "Grpc",
    "Http",
    "Log",
    "Model",
    "OpenAIProvider",
    "Problem",
    "Provider",
    "Server",
    "Settings",
    "SettingsError",
    "Target",
    "TimeoutOverrides",
    "Timeouts",
    "Tls",
    "files",
    "json_schema",
    "load",
    "schema_text",
]
