"""What the shape allows at a place: reads the annotations of the models."""

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from llmg.boot.settings.problems import Keys
from llmg.boot.settings.shape import Settings

KIND = "kind"
"""The key that tells the members of a union apart."""


@dataclass(frozen=True, slots=True)
class Node:
    """What may stand at a place: sections (several: told apart by `kind`), a mapping, a list; else one value."""

    sections: tuple[type[BaseModel], ...] = ()
    mapping_of: Any = None
    list_of: Any = None

    @property
    def single(self) -> bool:
        """Whether it is one value: text, number, boolean."""
        return not (self.sections or self.mapping_of or self.list_of)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that sections have here, without doubles."""
        return tuple(dict.fromkeys(name for section in self.sections for name in section.model_fields))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What `kind` may say here; empty where it does not tell the sections apart."""
        if not all(KIND in section.model_fields for section in self.sections):
            return ()
        return tuple(str(kind) for section in self.sections for kind in get_args(section.model_fields[KIND].annotation))

    def child(self, key: str | int) -> "Node | None":
        """What may stand under a key or index; None where nothing may."""
        for section in self.sections:
            if key in section.model_fields:
                return node(section.model_fields[str(key)].annotation)
        inner = self.mapping_of if isinstance(key, str) else self.list_of
        return node(inner) if inner else None

    def member(self, kind: str | int) -> "Node":
        """The section of that kind."""
        return Node(tuple(one for one in self.sections if kind in get_args(one.model_fields[KIND].annotation)))


ROOT = Node((Settings,))


def node(annotation: Any) -> Node:
    """Reads an annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return node(arguments[0])
    if origin in (Union, UnionType):
        members = [node(argument) for argument in arguments if argument is not NoneType]
        if len(members) == 1:
            return members[0]
        return Node(tuple(section for member in members for section in member.sections))
    if origin is dict:
        return Node(mapping_of=arguments[1])
    if origin in (list, tuple):
        return Node(list_of=arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Node((annotation,))
    return Node()


def locate(loc: Keys) -> tuple[Keys, Node]:
    """The place that a location of pydantic's means, and what may stand around it.

    Pydantic puts the kind of a union's member and "[key]" into its locations; places have neither.
    """
    here, around = ROOT, ROOT
    place: Keys = ()
    for part in loc:
        if len(here.sections) > 1 and here.kinds:
            here = here.member(part)
        elif part != "[key]":
            around, here, place = here, here.child(part) or Node(), (*place, part)
    return place, around
