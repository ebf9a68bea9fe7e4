"""JSON to messages and back: the same as protobuf's own, where that is right; and words for what does not fit."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from llmg.wire.transcoding.codec import Codec, build
from llmg.wire.transcoding.scalars import Misfit
from support import exotic

CODEC = Codec(exotic.pool())
READ = CODEC.reader(exotic.descriptor())
WRITE = CODEC.writer(exotic.descriptor())


def read(value: Any) -> Any:
    """A message of this JSON."""
    return build(exotic.descriptor(), READ(value))


def written(message: Any) -> Any:
    """A message as JSON, once through bytes."""
    return json.loads(msgspec.json.encode(WRITE(message)))


def theirs(value: Any) -> Any:
    """What protobuf's own makes of it. Raises ParseError where it refuses it."""
    return json_format.ParseDict(value, exotic.make(), descriptor_pool=exotic.pool())


# --- the same as protobuf's own --------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
UINT32, UINT64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
FLOAT = st.floats(width=32, allow_subnormal=False, allow_nan=False)
DOUBLE = st.floats(allow_nan=False)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
COLOR = st.sampled_from([0, 1, 2, 7])
INNER: st.SearchStrategy[Any] = st.recursive(
    st.builds(lambda name, size, tags: {"name": name, "size": size, "tags": tags}, TEXT, INT32, st.lists(TEXT)),
    lambda inner: st.builds(lambda name, one: {"name": name, "inner": one}, TEXT, inner),
    max_leaves=3,
)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SECONDS = st.integers(-62_135_596_800, 253_402_300_799)
TIME = st.builds(lambda s, n: {"seconds": s, "nanos": n}, SECONDS, st.integers(0, 999_999_999))
SPAN = st.integers(0, 315_576_000_000).map(lambda s: {"seconds": s, "nanos": 500_000_000 if s % 2 else 0})
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXT,
    "data": st.binary(max_size=8),
    "flag": st.booleans(),
    "number": INT32,
    "long_number": INT64,
    "unsigned_number": UINT32,
    "unsigned_long": UINT64,
    "signed_number": INT32,
    "fixed_long": UINT64,
    "real": FLOAT,
    "long_real": DOUBLE,
    "color": COLOR,
    "inner": INNER,
    "maybe": TEXT,
    "maybe_flag": st.booleans(),
    "renamed": TEXT,
    "strings": st.lists(TEXT, max_size=3),
    "long_numbers": st.lists(INT64, max_size=3),
    "reals": st.lists(FLOAT, max_size=3),
    "colors": st.lists(COLOR, max_size=3),
    "inner_list": st.lists(INNER, max_size=2),
    "data_list": st.lists(st.binary(max_size=4), max_size=2),
    "names": st.dictionaries(TEXT, TEXT, max_size=2),
    "colors_by_number": st.dictionaries(INT32, COLOR, max_size=2),
    "data_by_flag": st.dictionaries(st.booleans(), st.binary(max_size=4)),
    "inners": st.dictionaries(TEXT, INNER, max_size=2),
    "reals_by_number": st.dictionaries(UINT64, DOUBLE, max_size=2),
    "chosen_number": INT32,
    "timestamp": TIME,
    "duration": SPAN,
    "mask": st.lists(st.sampled_from(["a", "b.c", "a_b"]), max_size=2).map(lambda paths: {"paths": paths}),
    "long_wrapper": INT64.map(lambda v: {"value": v}),
    "flag_wrapper": st.booleans().map(lambda v: {"value": v}),
    "text_wrapper": TEXT.map(lambda v: {"value": v}),
    "data_wrapper": st.binary(max_size=4).map(lambda v: {"value": v}),
    "real_wrapper": DOUBLE.map(lambda v: {"value": v}),
    "timestamps": st.lists(TIME, max_size=2),
    "long_wrappers": st.lists(INT64.map(lambda v: {"value": v}), max_size=2),
}
MESSAGES = st.fixed_dictionaries({}, optional=FIELDS).map(lambda fields: exotic.make(**fields))


@settings(max_examples=200, deadline=None)
@given(MESSAGES, st.dictionaries(TEXT, PLAIN, max_size=3), PLAIN, st.lists(PLAIN, max_size=2))
def test_messages_are_written_as_protobuf_writes_them(message: Any, struct: Any, value: Any, values: Any) -> None:
    message.struct.update(struct)
    json_format.ParseDict(value, message.value)
    json_format.ParseDict(values, message.list)
    own = written(message)
    assert own == json.loads(json_format.MessageToJson(message, descriptor_pool=exotic.pool()))
    again = read(own)
    assert again == message
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    by_proto = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=exotic.pool())
    assert read(by_proto) == message


NAMES = [field.json_name for field in exotic.descriptor().fields] + ["long_number", "inner_list", "nothing"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.sampled_from(["", "1", "-1", "1.0", "1e3", "1.5", "NaN", "-Infinity", "true", "AAE=", "_-8", "COLOR_RED", "x"])
    | st.sampled_from(["2020-01-01T00:00:00Z", "1.5s", "a,b.c", "NULL_VALUE", "9223372036854775808"])
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from([*NAMES, "1", "true", "name", "size", "inner", "tags"]), inner, max_size=2)
    ),
    max_leaves=5,
)
# Where protobuf's own loses its way: null for a list of values is not absent to it, and null in a oneof is no choice.
LOST = {"values", "chosenNull"}


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING, min_size=1, max_size=3))
def test_any_json_is_read_as_protobuf_reads_it_or_refused_with_a_place(value: Any) -> None:
    try:
        own = read(value)
    except Misfit as misfit:
        at_fault(value, misfit)
        own = None
    if own is not None and not LOST & set(value):
        assert own == theirs(value)


def at_fault(value: Any, misfit: Misfit) -> None:
    """What its pointer leads to is there."""
    for step in misfit.pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        value = value[int(name)] if isinstance(value, list) else value.get(name)
    assert misfit.words


# --- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"longNumber": "5", "unsigned_long": 6, "number": 7.0}, {"long_number": 5, "unsigned_long": 6, "number": 7}),
        ({"number": "1e2", "real": "1.5", "longReal": 3}, {"number": 100, "real": 1.5, "long_real": 3.0}),
        ({"longReal": "-Infinity"}, {"long_real": float("-inf")}),
        ({"color": "COLOR_RED", "colors": [2, "2", 9]}, {"color": 1, "colors": [2, 2, 9]}),
        (
            {"data": "-_8", "dataList": ["+/8=", "AA", ""]},
            {"data": b"\xfb\xff", "data_list": [b"\xfb\xff", b"\0", b""]},
        ),
        ({"text": None, "inner": None, "strings": None, "names": None}, {}),
        ({"inner": {}}, {"inner": {}}),
        ({"maybe": "", "maybeFlag": False}, {"maybe": "", "maybe_flag": False}),
        ({"@other": "x"}, {"renamed": "x"}),
        ({"renamed": "x"}, {"renamed": "x"}),
        ({"colorsByNumber": {"-1": "COLOR_BLUE"}}, {"colors_by_number": {-1: 2}}),
        ({"dataByFlag": {"true": "AA"}}, {"data_by_flag": {True: b"\0"}}),
        ({"chosenNull": None}, {"chosen_null": 0}),
        ({"chosenText": "a", "chosenNumber": None}, {"chosen_text": "a"}),
        ({"duration": "1.5s"}, {"duration": {"seconds": 1, "nanos": 500_000_000}}),
        ({"longWrapper": "7"}, {"long_wrapper": {"value": 7}}),
        ({"value": None}, {"value": {"null_value": 0}}),
    ],
)
def test_read(value: Any, message: Any) -> None:
    assert read(value) == exotic.make(**message)


def test_a_struct_with_the_names_of_its_own_fields() -> None:
    struct = read({"struct": {"fields": {"a": "x"}}}).struct
    assert struct.fields["fields"].struct_value.fields["a"].string_value == "x"


@pytest.mark.parametrize(
    ("value", "pointer", "words"),
    [
        ([], "", "expected an object, got an array"),
        ({"txet": 1}, "/txet", "there is no such field; did you mean 'text'?"),
        ({"text": 1}, "/text", "expected a string, got a number"),
        ({"number": 2**31}, "/number", "expected an integer from -2147483648 to 2147483647"),
        ({"number": 1.5}, "/number", "expected an integer"),
        ({"number": "1_000"}, "/number", "expected an integer"),
        ({"number": "１"}, "/number", "expected an integer"),
        ({"number": "9" * 5000}, "/number", "expected an integer"),
        ({"number": True}, "/number", "got a boolean"),
        ({"unsignedLong": -1}, "/unsignedLong", "from 0 to 18446744073709551615"),
        ({"real": 1e39}, "/real", "expected a number from -3.40282e+38"),
        ({"longReal": "1e999"}, "/longReal", "expected a number from"),
        ({"longReal": "nan"}, "/longReal", "one of NaN, Infinity, -Infinity"),
        ({"longReal": []}, "/longReal", "expected a number, got an array"),
        ({"longReal": 10**400}, "/longReal", "expected a number from"),
        ({"flag": "true"}, "/flag", "expected true or false, got a string"),
        ({"color": "RED"}, "/color", "expected one of COLOR_UNSPECIFIED, COLOR_RED, COLOR_BLUE"),
        ({"data": "a*b="}, "/data", "expected a string in base64"),
        ({"data": "a"}, "/data", "expected a string in base64"),
        ({"strings": "a"}, "/strings", "expected an array"),
        ({"strings": ["a", None]}, "/strings/1", "expected a string, got null"),
        ({"innerList": [{}, {"inner": {"size": "x"}}]}, "/innerList/1/inner/size", "expected an integer"),
        ({"inners": {"a/b~": {"nme": ""}}}, "/inners/a~1b~0/nme", "did you mean 'name'?"),
        ({"names": {"a": None}}, "/names/a", "expected a string, got null"),
        ({"colorsByNumber": {"x": 1}}, "/colorsByNumber/x", "expected an integer"),
        ({"dataByFlag": {"yes": ""}}, "/dataByFlag/yes", "expected 'true' or 'false'"),
        ({"chosenText": "", "chosenNumber": 0}, "/chosenNumber", "only one of 'chosen_text' and 'chosen_number'"),
        ({"longNumber": 1, "long_number": 1}, "/long_number", "is there twice"),
        ({"timestamp": "yesterday"}, "/timestamp", "expected a time like 2006-01-02T15:04:05Z (RFC 3339)"),
        ({"timestamp": "9999999-01-01T00:00:00Z"}, "/timestamp", "expected a time"),
        ({"timestamp": 5}, "/timestamp", "got a number"),
        ({"duration": "1.5"}, "/duration", "expected seconds like 1.5s"),
        ({"duration": "999999999999999s"}, "/duration", "expected seconds"),
        ({"mask": ["a"]}, "/mask", "expected names of fields"),
        ({"longWrapper": {"value": 1}}, "/longWrapper", "expected an integer"),
        ({"struct": []}, "/struct", "expected an object, got an array"),
        ({"list": {}}, "/list", "expected an array, got an object"),
        ({"struct": {"a": 10**400}}, "/struct", "magnitude"),
        ({"value": [10**400]}, "/value", "magnitude"),
        ({"any": {"a": 1}}, "/any/@type", "expected the URL of a known message type"),
        ({"any": {"@type": "x/exotic.Nothing"}}, "/any/@type", "expected the URL"),
        ({"any": {"@type": 5}}, "/any/@type", "expected the URL"),
        ({"any": {"@type": "x/exotic.Inner", "size": "x"}}, "/any/size", "expected an integer"),
        ({"any": {"@type": "x/google.protobuf.Duration", "value": 1}}, "/any/value", "expected seconds"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(value: Any, pointer: str, words: str) -> None:
    with pytest.raises(Misfit) as raised:
        read(value)
    assert raised.value.pointer == pointer
    assert words in raised.value.words


ANYS = [
    {"@type": "type.googleapis.com/exotic.Inner", "name": "a", "inner": {"size": 3}},
    {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1.500s"},
    {"@type": "type.googleapis.com/google.protobuf.Int64Value", "value": "7"},
    {"@type": "x/google.protobuf.Any", "value": {"@type": "x/exotic.Inner", "name": "b"}},
    {"@type": "x/google.protobuf.Struct", "value": {"a": [1, None]}},
]


@pytest.mark.parametrize("value", ANYS)
def test_any(value: Any) -> None:
    message = read({"any": value})
    assert message == theirs({"any": value})
    assert written(message) == {"any": value}


def test_an_any_that_nobody_knows_stays_as_it_is() -> None:
    unknown = {"@type": "x/y.Z", "value": base64.b64encode(b"\1\2").decode()}
    assert written(exotic.make(any={"type_url": "x/y.Z", "value": b"\1\2"})) == {"any": unknown}
    broken = {"type_url": "x/exotic.Inner", "value": b"\xff\xff"}
    assert written(exotic.make(any=broken)) == {"any": {"@type": "x/exotic.Inner", "value": "//8="}}
    assert written(exotic.make(any={})) == {"any": {}}


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ({"long_real": float("nan"), "real": float("inf")}, {"longReal": "NaN", "real": "Infinity"}),
        ({"reals": [0.1, float("-inf"), 16777216.0, 1 / 3]}, {"reals": [0.1, "-Infinity", 16777216.0, 0.33333334]}),
        ({"chosen_null": 0}, {"chosenNull": None}),
        ({"value": {}}, {"value": None}),
        ({"value": {"number_value": 5}}, {"value": 5}),
        ({"value": {"number_value": 1e300}}, {"value": 1e300}),
        ({"value": {"number_value": float("inf")}}, {"value": "Infinity"}),
        ({"color": 9, "colors": [1, 9]}, {"color": 9, "colors": ["COLOR_RED", 9]}),
        ({}, {}),
    ],
)
def test_written(message: Any, value: Any) -> None:
    assert written(exotic.make(**message)) == value
