"""google.api.http: templates, the table of bindings, and which of them answers a path."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import given
from hypothesis import strategies as st

from llmg.wire.transcoding.bindings import Binding, bindings, fixed_paths
from llmg.wire.transcoding.routes import Routes
from llmg.wire.transcoding.templates import Variable, decode, parse
from support import exotic

TEMPLATES: list[tuple[str, tuple[str, ...], list[tuple[str, int, int | None, bool]], str]] = [
    ("/v1/things", ("v1", "things"), [], ""),
    ("/v1/*/x/**", ("v1", "*", "x", "**"), [], ""),
    ("/{id}", ("*",), [("id", 0, 1, False)], ""),
    ("/v1/{id=*}:cancel", ("v1", "*"), [("id", 1, 2, False)], "cancel"),
    ("/v1/{a.b.c=**}", ("v1", "**"), [("a.b.c", 1, None, True)], ""),
    ("/v1/{name=shelves/*/books/*}", ("v1", "shelves", "*", "books", "*"), [("name", 1, 5, True)], ""),
    ("/v1/{name=a/**}:b", ("v1", "a", "**"), [("name", 1, None, True)], "b"),
    ("/{a}/{b}", ("*", "*"), [("a", 0, 1, False), ("b", 1, 2, False)], ""),
    ("/a%20b/c", ("a b", "c"), [], ""),
    ("/v1/a:b:c", ("v1", "a:b"), [], "c"),
]


@pytest.mark.parametrize(("text", "segments", "variables", "verb"), TEMPLATES)
def test_templates(
    text: str, segments: tuple[str, ...], variables: list[tuple[str, int, int | None, bool]], verb: str
) -> None:
    template = parse(text)
    assert (template.text, template.segments, template.verb) == (text, segments, verb)
    assert [(v.name, v.start, v.end, v.multiple) for v in template.variables] == variables


@pytest.mark.parametrize(
    "text",
    [
        *("", "v1", "/", "/a//b", "/a/", "/{", "/}", "/{}", "/{a", "/a{b}", "/{a}b", "/{a=}", "/{a={b}}", "/{a=b//c}"),
        *("/{1a}", "/{a.}", "/{a..b}", "/{a-b}", "/**/a", "/{a=**}/b", "/{a}/{a}", "/%zz", "/{a=**}/**"),
    ],
)
def test_what_is_no_template(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|has|names"):
        parse(text)


@given(st.text("{}*=:/%a.", max_size=20))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert parse(f"/{text}").text == f"/{text}"


def value(template: str, path: str) -> str:
    """Of the template's only variable in the path."""
    (variable,) = parse(template).variables
    return variable.value(path.removeprefix("/").split("/"))


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("/{a}", "/x", "x"),
        ("/{a}", "/x%2Fy%20%C3%BC", "x/y ü"),
        ("/{a=*}", "/x%2fy", "x/y"),
        ("/{a}", "/1+1", "1+1"),
        ("/{a=**}", "/x/y%20z", "x/y z"),
        ("/{a=**}", "/x%2Fy/z%2f", "x%2Fy/z%2f"),
        ("/{a=x/*}", "/x/y%2Fz%21", "x/y%2Fz!"),
        ("/v/{a=**}", "/v", ""),
        ("/v/{a=**}", "/v/", ""),
        ("/v/{a=**}", "/v//x", "/x"),
    ],
)
def test_variables(template: str, path: str, expected: str) -> None:
    assert value(template, path) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_encoded_is_decoded(text: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in text.encode())
    assert decode(encoded) == text
    assert Variable(("a",), 0, 1, False).value([encoded]) == text


@pytest.mark.parametrize("text", ["%", "%2", "%zz", "a%f", "%ff", "%C3"])
def test_a_bad_escape(text: str) -> None:
    with pytest.raises(ValueError, match="percent"):
        decode(text)


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_binding_says_all_of_a_rule() -> None:
    table = exotic.table()
    assert "Unbound" not in {binding.rpc.name for binding in table}
    query = [(b.method, b.template.text) for b in table if b.rpc.name == "Query"]
    assert query == [("GET", "/exotic/query"), ("SEARCH", "/exotic/query"), ("*", "/exotic/any")]
    (part,) = [binding for binding in table if binding.rpc.name == "Part"]
    assert (part.method, part.body, part.response_body, part.path) == ("PUT", "inner", "inner", "/exotic.Exotic/Part")
    assert (part.input.full_name, part.output.full_name) == ("exotic.Everything", "exotic.Everything")
    many = [(b.body, b.response_body, b.server_streaming) for b in table if b.rpc.name == "Many"]
    assert many == [("", "", True), ("*", "inner", True)]
    assert [b.rpc.name for b in table if b.client_streaming] == ["Upload"]


def test_paths_without_fields() -> None:
    assert {"/exotic/all", "/exotic/query", "/exotic/any", "/exotic/raw"} <= fixed_paths(exotic.table())
    assert not any("{" in path for path in fixed_paths(exotic.table()))
    assert fixed_paths([a_binding("POST /a/b:stream")[0]]) == {"/a/b:stream"}


def service_with(rule: http_pb2.HttpRule) -> ServiceDescriptor:
    """A service of one method, `S.M(A) -> A`, with this rule. A: `a` text, `list` of it, `self` a message."""
    file = FileDescriptorProto(name="s.proto", package="s", syntax="proto3")
    message = file.message_type.add(name="A")
    message.field.add(name="a", number=1, type=FieldDescriptorProto.TYPE_STRING, label=1)
    message.field.add(name="list", number=2, type=FieldDescriptorProto.TYPE_STRING, label=3)
    message.field.add(name="self", number=3, type=FieldDescriptorProto.TYPE_MESSAGE, label=1, type_name=".s.A")
    method = file.service.add(name="S").method.add(name="M", input_type=".s.A", output_type=".s.A")
    method.options.Extensions[annotations_pb2.http].CopyFrom(rule)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found: ServiceDescriptor = pool.FindServiceByName("s.S")
    return found


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (http_pb2.HttpRule(get="x"), "must begin with '/'"),
        (http_pb2.HttpRule(get="/{b}"), "no field 'b'"),
        (http_pb2.HttpRule(get="/{list}"), "'list' is repeated"),
        (http_pb2.HttpRule(get="/{a.b}"), "'a' of s.A has no fields"),
        (http_pb2.HttpRule(get="/{self}"), "'self' is a message"),
        (http_pb2.HttpRule(post="/x", body="b"), "no field 'b'"),
        (http_pb2.HttpRule(post="/x", body="self.a"), "no field 'self.a'"),
        (http_pb2.HttpRule(get="/x", response_body="b"), "no field 'b'"),
        (http_pb2.HttpRule(get="/x", additional_bindings=[http_pb2.HttpRule(get="y")]), "must begin with '/'"),
    ],
)
def test_a_rule_that_does_not_hold(rule: http_pb2.HttpRule, says: str) -> None:
    with pytest.raises(ValueError, match=r"rule of s\.S\.M does not hold: .*") as raised:
        bindings([service_with(rule)])
    assert says in str(raised.value)


def test_a_rule_without_a_pattern_is_none() -> None:
    assert bindings([service_with(http_pb2.HttpRule(body="*"))]) == ()


# --- routes ----------------------------------------------------------------------------------------------------------


def a_binding(rule: str) -> tuple[Binding, str]:
    """`METHOD /template`, as the target of itself."""
    method, template = rule.split(" ")
    rpc = exotic.service().methods_by_name["All"]
    return Binding(method=method, template=parse(template), body="", response_body="", rpc=rpc), rule


RULES = [
    "GET /v1/things/**",
    "GET /v1/things/*",
    "GET /v1/things/special",
    "GET /v1/things",
    "POST /v1/things",
    "GET /v1/things/*:cancel",
    "GET /v1/things/*/parts/*",
    "GET /v1/*/special",
    "PUT /v1/things/**",
    "* /v1/any",
    "HEAD /v1/any",
    "GET /v1/things",  # again: the first one answers
    "GET /a%20b",
]


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ("GET /v1/things", "GET /v1/things"),
        ("POST /v1/things", "POST /v1/things"),
        ("GET /v1/things/special", "GET /v1/things/special"),
        ("GET /v1/other/special", "GET /v1/*/special"),
        ("GET /v1/things/x", "GET /v1/things/*"),
        ("GET /v1/things/sp%65cial", "GET /v1/things/special"),
        ("GET /v1/things/x/y", "GET /v1/things/**"),
        ("GET /v1/things/x/parts/y", "GET /v1/things/*/parts/*"),
        ("GET /v1/things/x/parts/y/z", "GET /v1/things/**"),
        ("GET /v1/things/", "GET /v1/things/**"),
        ("GET /v1/things/x:cancel", "GET /v1/things/*:cancel"),
        ("GET /v1/things/x:y:cancel", "GET /v1/things/*:cancel"),
        ("GET /v1/things/x%3Acancel", "GET /v1/things/*"),
        ("GET /v1/things/x:other", "GET /v1/things/*"),
        ("GET /v1/things/x/y:cancel", "GET /v1/things/**"),
        ("PUT /v1/things/special", "PUT /v1/things/**"),
        ("PUT /v1/things", "PUT /v1/things/**"),
        ("HEAD /v1/things", "GET /v1/things"),
        ("HEAD /v1/any", "HEAD /v1/any"),
        ("BREW /v1/any", "* /v1/any"),
        ("GET /a%20b", "GET /a%20b"),
    ],
)
def test_the_most_special_rule_answers(asked: str, rule: str) -> None:
    method, path = asked.split(" ")
    found = Routes(a_binding(each) for each in RULES).find(method, path)
    assert found.target == rule


@pytest.mark.parametrize(
    ("asked", "methods"),
    [
        ("DELETE /v1/things", {"GET", "POST", "PUT"}),
        ("DELETE /v1/things/x:cancel", {"GET", "PUT"}),
        ("GET /v1/nothing", set()),
        ("GET /", set()),
        ("GET /v1", set()),
        ("GET /v1//special", set()),
        ("GET /v1/things/special/x/y/../..", {"GET", "PUT"}),
    ],
)
def test_what_nothing_answers(asked: str, methods: set[str]) -> None:
    method, path = asked.split(" ")
    found = Routes(a_binding(each) for each in RULES).find(method, path)
    if method == "GET" and methods:
        assert found.target == "GET /v1/things/**"  # dots are no steps here: the path is taken as it is
    else:
        assert found.target is None
        assert found.methods == methods


def test_a_path_with_a_bad_escape() -> None:
    with pytest.raises(ValueError, match="percent"):
        Routes([a_binding("GET /a")]).find("GET", "/%zz")


def test_segments_are_given_without_the_verb() -> None:
    found = Routes([a_binding("GET /v1/{text}:cancel")]).find("GET", "/v1/x%3A:cancel")
    assert found.segments == ["v1", "x%3A"]
