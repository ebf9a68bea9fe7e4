"""What a document may ask: its tokens, depth and aliases; and documents that were found good are not checked again.

Fragments are counted as often as they are spread, each worked out once: to follow every spread anew would take a time
that doubles with each fragment, and a cycle of them for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)
from graphql.validation import NoSchemaIntrospectionCustomRule
from strawberry.extensions import SchemaExtension

_KEPT: Final = 128  # documents
_LONGEST_KEPT: Final = 16 << 10  # characters


class Size(NamedTuple):
    """Of a selection: how deep its fields go, and how many of them have an alias."""

    depth: int
    aliases: int


class Limits(NamedTuple):
    """The most that a document may have."""

    depth: int
    aliases: int
    tokens: int


def check(document: DocumentNode, limits: Limits) -> list[GraphQLError]:
    """What is too much. Introspection does not count: it has a switch of its own."""
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    sizer = _Sizer(fragments)
    errors = []
    for operation in document.definitions:
        if isinstance(operation, OperationDefinitionNode):
            depth, aliases = sizer.of(operation.selection_set)
            if depth > limits.depth:
                errors.append(GraphQLError(f"the operation is {depth} deep; {limits.depth} is allowed", operation))
            if aliases > limits.aliases:
                errors.append(GraphQLError(f"{aliases} aliases; {limits.aliases} are allowed", operation))
    return errors


class _Sizer:
    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode]) -> None:
        self._fragments = fragments
        self._known: dict[str, Size] = {}

    def of(self, selection: SelectionSetNode | None) -> Size:
        sizes = [self._one(node) for node in selection.selections] if selection is not None else []
        return Size(max([s.depth for s in sizes], default=0), sum([s.aliases for s in sizes]))

    def _one(self, node: object) -> Size:
        match node:
            case FieldNode() if node.name.value.startswith("__"):
                return Size(0, node.alias is not None)
            case FieldNode():
                inner = self.of(node.selection_set)
                return Size(inner.depth + 1, inner.aliases + (node.alias is not None))
            case InlineFragmentNode():
                return self.of(node.selection_set)
            case FragmentSpreadNode():
                return self._fragment(node.name.value)
        raise AssertionError(f"no selection: {node!r}")

    def _fragment(self, name: str) -> Size:
        if name not in self._known:
            self._known[name] = Size(0, 0)  # in a cycle, which validation refuses
            if name in self._fragments:
                self._known[name] = self.of(self._fragments[name].selection_set)
        return self._known[name]


class Prepared:
    """Documents that were parsed and found good, by their text; the oldest go first."""

    def __init__(self, limits: Limits, introspection: bool) -> None:
        self.limits = limits
        self.introspection = introspection
        self._documents: dict[str, DocumentNode] = {}

    def find(self, text: str | None) -> DocumentNode | None:
        """The document of that text."""
        return None if text is None else self._documents.get(text)

    def keep(self, text: str | None, document: DocumentNode) -> None:
        """A document that is good."""
        if text is not None and len(text) <= _LONGEST_KEPT:
            if len(self._documents) >= _KEPT:
                del self._documents[next(iter(self._documents))]
            self._documents[text] = document


class Preparing(SchemaExtension):
    """Checks one request's document. One per request."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def on_parse(self) -> Iterator[None]:
        """See SchemaExtension."""
        context = self.execution_context
        context.parse_options["max_tokens"] = self._prepared.limits.tokens
        context.graphql_document = self._prepared.find(context.query)
        yield

    def on_validate(self) -> Iterator[None]:
        """See SchemaExtension: errors that are there already, or an empty list of them, stand for a validation."""
        context = self.execution_context
        document = context.graphql_document
        assert document is not None, "it was parsed"
        if self._prepared.find(context.query) is document:
            context.pre_execution_errors = []
            yield
            return
        context.pre_execution_errors = check(document, self._prepared.limits) or None
        if not self._prepared.introspection:
            context.validation_rules = (*context.validation_rules, NoSchemaIntrospectionCustomRule)
        yield
        if not context.pre_execution_errors:
            self._prepared.keep(context.query, document)
