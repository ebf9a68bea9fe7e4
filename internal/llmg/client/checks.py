"""Whether values are what the contract's fields take, told before anything is sent.

betterproto2 keeps what it is given. When it writes, an integer that is too large wraps, and a value of another type
raises whatever it happens to raise. Here they are `InvalidRequestError`s that name the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import betterproto2

from llmg.client.errors import InvalidRequestError, invalid

_DEEPEST: Final = 100  # messages within messages: protobuf's parsers take no more
_LONGEST: Final = 128  # bits of an integer that is shown


class Expected(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_text(given: Any) -> bool:
    try:
        return isinstance(given, str) and (given.isascii() or bool(given.encode()))
    except UnicodeEncodeError:
        return False


def _integer(bits: int) -> Expected:
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    return Expected(
        f"an integer from {least} to {most}",
        lambda given: isinstance(given, int) and not isinstance(given, bool) and least <= given <= most,
    )


def _is_number(given: Any) -> bool:
    return isinstance(given, float) or (
        isinstance(given, int) and not isinstance(given, bool) and given.bit_length() < 1024  # a double's largest
    )


TEXT: Final = Expected("a text", _is_text)
FLAG: Final = Expected("True or False", lambda given: isinstance(given, bool))
NUMBER: Final = Expected("a number", _is_number)
BYTES: Final = Expected("bytes", lambda given: isinstance(given, bytes | bytearray))

_BY_TYPE: Final[Mapping[str, Expected]] = {
    betterproto2.TYPE_STRING: TEXT,
    betterproto2.TYPE_BOOL: FLAG,
    betterproto2.TYPE_DOUBLE: NUMBER,
    betterproto2.TYPE_BYTES: BYTES,
    betterproto2.TYPE_INT32: _integer(32),
    betterproto2.TYPE_INT64: _integer(64),
    betterproto2.TYPE_ENUM: _integer(32),
}


def check(given: Any, expected: Expected, where: str) -> None:
    """Raises InvalidRequestError."""
    if expected.fits(given):
        return
    if expected is TEXT and isinstance(given, str):
        raise invalid(f"invalid '{where}': half of a surrogate pair is no character", where)
    raise wrong(expected.words, given, where)


def wrong(words: str, given: Any, where: str) -> InvalidRequestError:
    """For a value that is something else."""
    return invalid(f"invalid '{where}': expected {words}, not {_shown(given)}", where)


def _shown(given: Any) -> str:
    if isinstance(given, int) and given.bit_length() > _LONGEST:
        return f"one of {given.bit_length()} bits"
    return repr(given) if given is None or isinstance(given, int | float) else type(given).__name__


def listed(given: Any, words: str, where: str) -> Sequence[Any]:
    """A list, or what serves as one; not a text. Raises InvalidRequestError."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes | bytearray):
        raise wrong(words, given, where)
    return given


def message(given: betterproto2.Message, where: str = "", depth: int = 0) -> None:
    """Checks a message of the contract. `where` is its path. Raises InvalidRequestError."""
    if depth > _DEEPEST:
        where = where.partition(".fields.")[0]  # the JSON's own path is not the contract's
        raise invalid(f"invalid '{where}': it is nested too deeply", where)
    for name in _contract(type(given)).meta_by_field_name:
        value = getattr(given, name)
        if value is not None:  # as good as absent, in any field
            field(type(given), name, value, f"{where}.{name}" if where else name, depth)


def field(owner: type[betterproto2.Message], name: str, given: Any, where: str, depth: int = 0) -> None:
    """Checks what is given for a field of `owner`, by its type there. `where` is what the caller calls it.

    Raises InvalidRequestError.
    """
    contract = _contract(owner)
    meta, of = contract.meta_by_field_name[name], contract.cls_by_field
    if meta.map_meta is not None:
        _map(meta.map_meta[1].proto_type, of[f"{name}.value"], given, where, depth)
    elif meta.repeated:
        _list(meta.proto_type, of[name], listed(given, "a list", where), where, depth)
    else:
        _value(meta.proto_type, of[name], given, where, depth)


def _contract(of: type[betterproto2.Message]) -> betterproto2.ProtoClassMetadata:
    untyped: Any = of  # betterproto2's types take this for an attribute of messages alone
    contract: betterproto2.ProtoClassMetadata = untyped._betterproto
    return contract


def _map(kind: str, of: type, given: Any, where: str, depth: int) -> None:
    if not isinstance(given, Mapping):
        raise wrong("a dictionary", given, where)
    for name, item in given.items():  # the contract has no other keys than texts
        if not isinstance(name, str):
            raise wrong("texts as keys", name, where)
        check(name, TEXT, where)
        _value(kind, of, item, f"{where}.{name}", depth + 1)  # an entry is a message, too


def _list(kind: str, of: type, given: Sequence[Any], where: str, depth: int) -> None:
    if kind in _BY_TYPE and all(map(_BY_TYPE[kind].fits, given)):
        return  # tokens may be many: the short way
    for i, item in enumerate(given):
        _value(kind, of, item, f"{where}[{i}]", depth)


def _value(kind: str, of: type, given: Any, where: str, depth: int) -> None:
    if kind != betterproto2.TYPE_MESSAGE:
        check(given, _BY_TYPE[kind], where)
    elif isinstance(given, of) and isinstance(given, betterproto2.Message):
        message(given, where, depth + 1)
    else:
        raise wrong(f"types.{of.__name__}", given, where)
