"""HTTP requests to messages: what is the body's, the path's and the query's; and where a fault is."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmg.core.errors import Failure, Kind
from llmg.wire.jsonapi import Refused, Source
from llmg.wire.transcoding.bindings import Binding
from llmg.wire.transcoding.codec import Codec
from llmg.wire.transcoding.requests import Transcoder
from llmg.wire.transcoding.routes import Routes
from support import exotic

CODEC = Codec(exotic.pool())
TABLE: dict[str, list[Binding]] = {}
for _binding in exotic.table():
    TABLE.setdefault(_binding.rpc.name, []).append(_binding)
ROUTES = Routes((binding, Transcoder(binding, CODEC)) for binding in exotic.table())


def ask(request: str, body: Any = None) -> Any:
    """`METHOD /path?query`, as a message."""
    method, _, target = request.partition(" ")
    path, _, query = target.partition("?")
    found = ROUTES.find(method, path)
    assert found.target is not None, request
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return found.target.decode(data, found.segments, query.encode())


def fault(request: str, body: Any = None) -> tuple[Source | None, str]:
    """Where it is, and what is said."""
    with pytest.raises(Refused) as raised:
        ask(request, body)
    (problem,) = raised.value.problems
    assert (problem.status, problem.code, raised.value.kind) == (400, "invalid_request", Kind.INVALID_REQUEST)
    return problem.source, problem.detail


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ("", {}),
        ("text=a%20b+c", {"text": "a b c"}),
        ("text=%C3%BC&number=-5", {"text": "ü", "number": -5}),
        ("longNumber=7&unsigned_long=8", {"long_number": 7, "unsigned_long": 8}),
        ("flag=true&maybe_flag=false", {"flag": True, "maybe_flag": False}),
        ("color=COLOR_RED&colors=1&colors=COLOR_BLUE", {"color": 1, "colors": [1, 2]}),
        ("real=1.5&longReal=-Infinity&", {"real": 1.5, "long_real": float("-inf")}),
        ("strings=a&strings=&strings=c", {"strings": ["a", "", "c"]}),
        ("inner.name=a&inner.inner.size=5", {"inner": {"name": "a", "inner": {"size": 5}}}),
        ("inner.tags=x&inner.tags=y", {"inner": {"tags": ["x", "y"]}}),
        ("data=AAE%3D&%40other=x", {"data": b"\0\1", "renamed": "x"}),
        ("timestamp=1970-01-01T00:00:01Z&duration=2s", {"timestamp": {"seconds": 1}, "duration": {"seconds": 2}}),
        ("mask=a,bC", {"mask": {"paths": ["a", "b_c"]}}),
        ("longWrapper=5&flagWrapper=true", {"long_wrapper": {"value": 5}, "flag_wrapper": {"value": True}}),
        ("textWrapper=", {"text_wrapper": {}}),
        ("timestamps=1970-01-01T00:00:01Z", {"timestamps": [{"seconds": 1}]}),
        ("chosenInner.name=a", {"chosen_inner": {"name": "a"}}),
    ],
)
def test_the_query(request_: str, fields: Any) -> None:
    assert ask(f"GET /exotic/query?{request_}") == exotic.make(**fields)


@pytest.mark.parametrize(
    ("query", "parameter", "words"),
    [
        ("nothing=1", "nothing", "there is no such field"),
        ("inner.nothing=1", "inner.nothing", "there is no such field"),
        ("text.a=1", "text.a", "there is no field 'a' in 'text'"),
        ("inner=1", "inner", "can't be a parameter"),
        ("struct=1", "struct", "can't be a parameter"),
        ("struct.fields=1", "struct.fields", "there is no field 'fields' in 'struct'"),
        ("innerList.name=1", "innerList.name", "there is no field 'name' in 'inner_list'"),
        ("names=1", "names", "can't be a parameter"),
        ("number=x", "number", "expected an integer from"),
        ("flag=1", "flag", "expected 'true' or 'false'"),
        ("color=PINK", "color", "expected one of COLOR_UNSPECIFIED"),
        ("timestamp=now", "timestamp", "expected a time"),
        ("longWrapper=x", "longWrapper", "expected an integer"),
        ("text=a&text=b", "text", "it is there twice"),
        ("chosenText=a&chosenNumber=1", "chosenNumber", "only one of 'chosen_text' and 'chosen_number'"),
        ("chosenInner.name=a&chosenText=b", "chosenText", "only one of"),
        ("text=%zz", "text", "a percent sign"),
        ("text=%ff", "text", "must be UTF-8"),
        ("%zz=a", "%zz", "a percent sign"),
        ("=1", "", "there is no such field"),
        ("inner" + ".inner" * 300 + ".name=1", ("inner" + ".inner" * 300)[:200], "too deeply"),
    ],
)
def test_a_fault_in_the_query(query: str, parameter: str, words: str) -> None:
    source, detail = fault(f"GET /exotic/query?{query}")
    assert source == Source(parameter=parameter)
    assert words in detail


def test_the_body_is_all() -> None:
    assert ask("POST /exotic/all", {"text": "a", "inner": {"size": 0}}) == exotic.make(text="a", inner={"size": 0})
    assert ask("POST /exotic/all") == exotic.make()
    assert ask("POST /exotic/raw", {"a": [1]}).fields["a"].list_value.values[0].number_value == 1


@pytest.mark.parametrize(
    ("request_", "body", "field", "value"),
    [
        ("PATCH /exotic/list", ["a", "b"], "strings", ["a", "b"]),
        ("PATCH /exotic/list", None, "strings", []),
        ("PATCH /exotic/list", b"null", "strings", []),
        ("PATCH /exotic/map", {"a": {"name": "b"}}, "inners", {"a": {"name": "b"}}),
    ],
)
def test_the_body_is_a_field(request_: str, body: Any, field: str, value: Any) -> None:
    assert ask(request_, body) == exotic.make(**{field: value})


def test_the_body_is_a_field_and_the_rest_is_elsewhere() -> None:
    message = ask("PUT /exotic/a%2Fb/part/groups/c%20d?number=5&strings=x", {"name": "over", "size": 1})
    assert message == exotic.make(text="a/b", inner={"name": "groups/c d", "size": 1}, number=5, strings=["x"])


def test_typed_fields_in_the_path() -> None:
    message = ask("GET /exotic/typed/7/1970-01-01T00:00:05Z/COLOR_BLUE")
    assert message == exotic.make(number=7, timestamp={"seconds": 5}, color=2)


@pytest.mark.parametrize(
    ("request_", "body", "source", "words"),
    [
        ("POST /exotic/all", b"{", Source(pointer=""), "it is not valid JSON"),
        ("POST /exotic/all", b" ", Source(pointer=""), "it is not valid JSON"),
        ("POST /exotic/all", b'"\xff"', Source(pointer=""), "it is not valid UTF-8"),
        ("POST /exotic/all", b"[" * 300, Source(pointer=""), "nested too deeply"),
        ("POST /exotic/all", b'{"value":' + b"[" * 256 + b"]" * 256 + b"}", Source(pointer=""), "nested too deeply"),
        ("POST /exotic/all", [], Source(pointer=""), "expected an object, got an array"),
        ("POST /exotic/all", None, None, ""),
        ("POST /exotic/all", {"inner": {"tags": [1]}}, Source(pointer="/inner/tags/0"), "expected a string"),
        ("POST /exotic/all?text=a", {}, Source(parameter="text"), "all is in the body"),
        ("PATCH /exotic/list", ["a", 1], Source(pointer="/1"), "expected a string"),
        ("PATCH /exotic/list?strings=a", [], Source(parameter="strings"), "this field is the body"),
        ("PUT /exotic/a/part/groups/b", {"size": "x"}, Source(pointer="/size"), "expected an integer"),
        ("PUT /exotic/a/part/groups/b?text=c", {}, Source(parameter="text"), "this field is in the path"),
        ("PUT /exotic/a/part/groups/b?inner.size=1", {}, Source(parameter="inner.size"), "this field is the body"),
        ("GET /exotic/query", {"text": "a"}, Source(pointer=""), "takes no body"),
        ("GET /exotic/typed/x/1970-01-01T00:00:05Z/1", None, Source(parameter="number"), "expected an integer"),
        ("GET /exotic/typed/1/x/1", None, Source(parameter="timestamp"), "expected a time"),
        ("GET /exotic/typed/1/1970-01-01T00:00:05Z/PINK", None, Source(parameter="color"), "expected one of"),
    ],
)
def test_a_fault_in_the_body_or_the_path(request_: str, body: Any, source: Source | None, words: str) -> None:
    if source is None:
        assert ask(request_, body) == exotic.make()
        return
    found, detail = fault(request_, body)
    assert found == source
    assert words in detail


@pytest.mark.parametrize(("field", "most"), [("value", 48), ("struct", 32)])
def test_as_deep_as_protobuf_takes_it(field: str, most: int) -> None:
    open_, close = ("[", "]") if field == "value" else ('{"a":', "}")

    def nested(depth: int) -> bytes:
        return f'{{"{field}":{open_ * depth}{"[]" if field == "value" else "{}"}{close * depth}}}'.encode()

    message = ask("POST /exotic/all", nested(most))
    assert message.FromString(message.SerializeToString()) == message
    for depth in (100, 200, 250):
        assert fault("POST /exotic/all", nested(depth)) == (
            Source(pointer=""),
            "invalid body: it is nested too deeply",
        )


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rpc", "fields", "body"),
    [
        ("All", {"text": "a"}, {"text": "a"}),
        ("Part", {"inner": {"size": 0}}, {"size": 0}),
        ("Part", {}, {}),
        ("List", {"strings": ["a"]}, ["a"]),
        ("Map", {"inners": {"a": {"name": "b"}}}, {"a": {"name": "b"}}),
        ("Text", {"text": "a"}, "a"),
    ],
)
def test_answers(rpc: str, fields: Any, body: Any) -> None:
    assert json.loads(Transcoder(TABLE[rpc][0], CODEC).encode(exotic.make(**fields))) == body


def test_an_answer_that_json_can_not_have() -> None:
    with pytest.raises(Failure) as raised:
        Transcoder(TABLE["All"][0], CODEC).encode(exotic.make(timestamp={"seconds": 10**15}))
    assert raised.value.kind is Kind.UPSTREAM_PROTOCOL


# --- what servers say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rpc", "field", "source"),
    [
        ("All", "inner_list[0].inner.size", Source(pointer="/innerList/0/inner/size")),
        ("All", "renamed", Source(pointer="/@other")),
        ("All", "inners.some_key.inner", Source(pointer="/inners/some_key/inner")),
        ("All", "names.long_number", Source(pointer="/names/long_number")),
        ("All", 'inners["a.b [1] \\"c\\""].inner', Source(pointer='/inners/a.b [1] "c"/inner')),
        ("All", 'inners["a\\x"].inner', Source(pointer='/inners/"a\\x"/inner')),
        ("All", "no_such.long_number", Source(pointer="/no_such/long_number")),
        ("All", "", Source(pointer="")),
        ("Part", "inner.tags[1]", Source(pointer="/tags/1")),
        ("Part", "inner", Source(pointer="")),
        ("Part", "inner.name", Source(parameter="inner.name")),
        ("Part", "text", Source(parameter="text")),
        ("Part", "long_number", Source(parameter="longNumber")),
        ("Query", "inner.tags[0]", Source(parameter="inner.tags")),
    ],
)
def test_where_a_field_is(rpc: str, field: str, source: Source) -> None:
    assert Transcoder(TABLE[rpc][0], CODEC).source(field) == source


# --- whatever comes --------------------------------------------------------------------------------------------------

NAMES = [field.json_name for field in exotic.descriptor().fields]
PARAMETERS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([*NAMES, "name", "size", "seconds", "value", ""]), min_size=1, max_size=3).map(
            ".".join
        ),
        st.sampled_from(["1", "true", "a", "", "COLOR_RED", "1.5s", "AA==", "NULL_VALUE"]) | st.text(max_size=3),
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(PARAMETERS)
def test_any_query_is_read_or_refused(parameters: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={quote(value, errors='replace')}" for name, value in parameters)
    try:
        message = ask(f"GET /exotic/query?{query}")
    except Refused as refused:
        (problem,) = refused.problems
        assert problem.source is not None
        assert problem.source.parameter in {name for name, _ in parameters}
    else:
        assert message.DESCRIPTOR is exotic.descriptor()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30), st.sampled_from(["POST /exotic/all", "PATCH /exotic/map", "POST /exotic/raw"]))
def test_any_body_is_read_or_refused(body: bytes, request_: str) -> None:
    with suppress(Refused):
        ask(request_, body)
