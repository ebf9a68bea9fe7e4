"""For schemathesis, in its environment: how values of GraphQL's custom scalars are made up."""

from __future__ import annotations

import base64
import json
from typing import Any

from graphql import IntValueNode, StringValueNode, parse_value
from hypothesis import strategies as st
from schemathesis.graphql import scalar  # type: ignore[import-not-found]  # it is not in ours

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,9}", fullmatch=True)
PLAIN = st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=20)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


def written(value: Any) -> str:
    """A value of JSON, as GraphQL's documents have it: names of fields without quotes."""
    if isinstance(value, dict):
        return "{" + " ".join(f"{name}: {written(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + " ".join(map(written, value)) + "]"
    return json.dumps(value)


scalar("JSON", VALUES.map(written).map(parse_value))
scalar("Int64", st.integers(-(2**63), 2**63 - 1).map(lambda number: IntValueNode(value=str(number))))
scalar(
    "Base64",
    st.binary(max_size=40).map(lambda data: StringValueNode(value=base64.b64encode(data).decode())),
)
