"""Path templates of google.api.http (google/api/http.proto, "Path template syntax"), parsed.

Template  = "/" Segments [ Verb ] ;
Segments  = Segment { "/" Segment } ;
Segment   = "*" | "**" | LITERAL | Variable ;
Variable  = "{" FieldPath [ "=" Segments ] "}" ;
FieldPath = IDENT { "." IDENT } ;
Verb      = ":" LITERAL ;
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from msgspec import Struct

ONE: Final = "*"  # any one segment
REST: Final = "**"  # all that are left, if any

_PIECE: Final = re.compile(r"\{(?P<path>[^={}]*)(?:=(?P<inner>[^{}]*))?\}|(?P<plain>[^/{}]+)")
_FIELD_PATH: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASH: Final = re.compile(r"%2f", re.IGNORECASE)


class Variable(Struct, frozen=True):
    """Which segments a field takes: from `start` to before `end`; None: to the last one.

    `path` is the field's: `("shelf", "name")`. `multiple`: its template has several segments, or `**`, so that an
    escaped slash in its value is left as it is.
    """

    path: tuple[str, ...]
    start: int
    end: int | None
    multiple: bool

    @property
    def name(self) -> str:
        """The field's path, as the template has it: `shelf.name`."""
        return ".".join(self.path)

    def value(self, segments: list[str]) -> str:
        """Its value in a path's segments, which are still percent-encoded. Raises ValueError on a bad escape."""
        raw = "/".join(segments[self.start : self.end])
        if "%" not in raw:
            return raw
        return "".join(_decoded(raw)) if self.multiple else decode(raw)


class Template(Struct, frozen=True):
    """A parsed template. `segments` are literals, ONE and REST (only at the end); `verb` has no colon, "" is none."""

    text: str
    segments: tuple[str, ...]
    variables: tuple[Variable, ...]
    verb: str


def decode(text: str) -> str:
    """Without percent-encoding. Raises ValueError where it is not right, or not UTF-8."""
    if _BAD_ESCAPE.search(text):
        raise ValueError("a percent sign must be followed by two hexadecimal digits")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("percent-encoded bytes must be UTF-8") from None


def _decoded(raw: str) -> list[str]:
    """Decoded, but for escaped slashes."""
    slashes = _SLASH.findall(raw)
    pieces = [decode(piece) for piece in _SLASH.split(raw)]
    return [text for pair in zip(pieces, [*slashes, ""], strict=True) for text in pair]


def parse(text: str) -> Template:
    """A template. Raises ValueError with a sentence on what is wrong with it."""
    if not text.startswith("/"):
        raise ValueError(f"the path {text!r} must begin with '/'")
    body, verb = _verb(text[1:])
    segments: list[str] = []
    variables: list[Variable] = []
    at = 0
    while True:
        piece = _PIECE.match(body, at)
        if piece is None:
            raise ValueError(f"the path {text!r} has an empty segment or braces that don't match")
        if piece["plain"] is not None:
            segments.append(piece["plain"])
        else:
            variables.append(_variable(text, piece, segments))
        at = piece.end()
        if at == len(body):
            break
        if body[at] != "/":
            raise ValueError(f"the path {text!r} must have '/' between its segments")
        at += 1
    if REST in segments[:-1]:
        raise ValueError(f"the path {text!r} must have '**' at its end only")
    if len({variable.path for variable in variables}) < len(variables):
        raise ValueError(f"the path {text!r} names a field twice")
    return Template(text, tuple(s if s in (ONE, REST) else decode(s) for s in segments), tuple(variables), verb)


def _verb(body: str) -> tuple[str, str]:
    """What stands before the verb, and the verb: behind the last colon that is in no braces and no earlier segment."""
    colon = body.rfind(":")
    if colon < 0 or "}" in body[colon:] or "/" in body[colon:]:
        return body, ""
    return body[:colon], decode(body[colon + 1 :])


def _variable(text: str, piece: re.Match[str], segments: list[str]) -> Variable:
    if not _FIELD_PATH.fullmatch(piece["path"]):
        raise ValueError(f"the path {text!r} has {piece['path']!r} where a field's name must be")
    inner = (piece["inner"] if piece["inner"] is not None else ONE).split("/")
    if "" in inner:
        raise ValueError(f"the path {text!r} has an empty segment")
    start = len(segments)
    segments += inner
    end = None if inner[-1] == REST else len(segments)
    return Variable(tuple(piece["path"].split(".")), start, end, len(inner) > 1 or inner == [REST])
