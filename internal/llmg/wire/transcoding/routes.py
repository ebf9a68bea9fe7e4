"""Which binding answers a request: by its method and the segments of its path.

A tree of segments, in which a literal goes before `*`, and `*` before `**`, from left to right; a path that ends in a
verb (`:cancel`) is first looked up as one. Where two bindings are alike, the first one that was given answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from msgspec import Struct

from llmg.wire.transcoding.bindings import ANY, Binding
from llmg.wire.transcoding.templates import ONE, REST, decode

T = TypeVar("T")


class _Node(Struct, Generic[T]):
    literals: dict[str, _Node[T]] = {}
    one: _Node[T] | None = None
    rest: _Node[T] | None = None
    ends: dict[str, dict[str, T]] = {}  # by verb and method


class Found(Struct, Generic[T], frozen=True):
    """What a path leads to: the `target` for the method, with the path's `segments` as the template counts them (still
    percent-encoded, the verb cut off); or None, and the `methods` that there are at this path, if any."""

    target: T | None
    segments: list[str]
    methods: frozenset[str]


class Routes(Generic[T]):
    """Targets by binding."""

    def __init__(self, targets: Iterable[tuple[Binding, T]]) -> None:
        self._root: _Node[T] = _Node()
        for binding, target in targets:
            self._add(binding, target)

    def _add(self, binding: Binding, target: T) -> None:
        node = self._root
        for segment in binding.template.segments:
            if segment == ONE:
                node.one = node = node.one or _Node()
            elif segment == REST:
                node.rest = node = node.rest or _Node()
            else:
                node = node.literals.setdefault(segment, _Node())
        node.ends.setdefault(binding.template.verb, {}).setdefault(binding.method, target)

    def find(self, method: str, path: str) -> Found[T]:
        """The way of a request; `path` as it was sent, percent-encoded. HEAD is answered as GET is.

        Raises ValueError on a bad escape.
        """
        segments = path.removeprefix("/").split("/")
        names = [decode(segment) if "%" in segment else segment for segment in segments]
        offered: set[str] = set()
        for verb, ends, raw in self._ends(names, segments):
            methods = ends.get(verb)
            if methods is None:
                continue
            target = methods.get(method) or (methods.get("GET") if method == "HEAD" else None) or methods.get(ANY)
            if target is not None:
                return Found(target, raw, frozenset())
            offered.update(methods)
        return Found(None, segments, frozenset(offered))

    def _ends(self, names: list[str], segments: list[str]) -> Iterator[tuple[str, dict[str, dict[str, T]], list[str]]]:
        last, colon, verb = segments[-1].rpartition(":")
        if colon:
            short = [*segments[:-1], last]
            for node in _walk(self._root, [*names[:-1], decode(last)], 0):
                yield decode(verb), node.ends, short
        for node in _walk(self._root, names, 0):
            yield "", node.ends, segments


def _walk(node: _Node[T], names: list[str], at: int) -> Iterator[_Node[T]]:
    if at == len(names):
        yield node
    else:
        literal = node.literals.get(names[at])
        if literal is not None:
            yield from _walk(literal, names, at + 1)
        if node.one is not None and names[at]:
            yield from _walk(node.one, names, at + 1)
    if node.rest is not None:
        yield node.rest
