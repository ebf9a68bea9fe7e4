"""The JSON schema of the configuration file, for editors."""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from llmg.boot.settings.shape import Settings

_REFERENCE = {
    "description": "Filled in from the environment: ${NAME} or ${NAME:-default}.",
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^{}]*)?\}",
}
_NARROW = {"enum", "pattern"}
_NOTES = {"description", "default", "examples", "title"}


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """No: "Server Addr" says less than server_addr."""
        return False


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of a configuration file."""
    schema = _with_references(Settings.model_json_schema(schema_generator=_Generator))
    schema["$defs"]["Reference"] = _REFERENCE
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "llmg configuration"}


def schema_text() -> str:
    """The schema as it stands in config/config.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _with_references(schema: Any) -> Any:
    """Lets a `${VARIABLE}` stand for any value that isn't free text anyway."""
    if isinstance(schema, list):
        return [_with_references(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if _is_narrow(schema):
        notes = {key: value for key, value in schema.items() if key in _NOTES}
        rest = {key: value for key, value in schema.items() if key not in _NOTES}
        return {**notes, "anyOf": [rest, {"$ref": "#/$defs/Reference"}]}
    return {key: _with_references(value) for key, value in schema.items()}


def _is_narrow(schema: dict[str, Any]) -> bool:
    return schema.get("type") in ("integer", "number", "boolean") or (
        schema.get("type") == "string" and bool(_NARROW & schema.keys())
    )
