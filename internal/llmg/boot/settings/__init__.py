"""The configuration: its shape, where it is read from, and what can be wrong with it.

`load` gives the `Settings`, or raises `SettingsError` with all that is wrong. Nothing else in llmg imports pydantic.
"""

from llmg.boot.settings.loading import check_tenants, files, load, origin, watched, with_tenants
from llmg.boot.settings.models import Entry, FlatModel, GroupTarget, Model, Target
from llmg.boot.settings.problems import Problem, SettingsError
from llmg.boot.settings.providers import (
    BackendProvider,
    EchoProvider,
    OpenAIProvider,
    Provider,
    TimeoutOverrides,
    Timeouts,
)
from llmg.boot.settings.reference import reference_text
from llmg.boot.settings.schema import json_schema, schema_text
from llmg.boot.settings.servers import Grpc, Http, Log, Server, Tls
from llmg.boot.settings.shape import Settings

__all__ = [
    "BackendProvider",
    "EchoProvider",
    "Entry",
    "FlatModel",
    "GroupTarget",
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
    "check_tenants",
    "files",
    "json_schema",
    "load",
    "origin",
    "reference_text",
    "schema_text",
    "watched",
    "with_tenants",
]
