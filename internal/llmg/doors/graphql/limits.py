"""What a document may ask: its length, tokens, depth, fields, aliases; one that was found good is not checked again.

Fragments are counted as often as they are spread, each worked out once: to follow every spread anew would take a time
that doubles with each fragment, and a cycle of them for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

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

_LONGEST: Final = 100 << 10  # characters: tokens may be of any length
_FIELDS: Final = 500  # twice the usual introspection query's; validation takes their number's square
_FRAGMENTS: Final = 64  # validation compares each with each, at 25 us
_INTROSPECTION_DEPTH: Final = 30  # twice the usual query's
_KEPT: Final = 128  # documents
_LONGEST_KEPT: Final = 16 << 10  # characters


class Size(NamedTuple):
    """Of a selection: how deep its fields go, and introspection's; how many there are, and how many have an alias."""

    depth: int = 0
    introspection: int = 0
    fields: int = 0
    aliases: int = 0


class Limits(NamedTuple):
    """The most that a document may have."""

    depth: int
    aliases: int
    tokens: int


def check(document: DocumentNode, limits: Limits) -> list[GraphQLError]:
    """What is too much. Introspection is deep by nature, and has a depth of its own."""
    fragments = [d for d in document.definitions if isinstance(d, FragmentDefinitionNode)]
    if len(fragments) > _FRAGMENTS:
        return [GraphQLError(f"{len(fragments)} fragments; {_FRAGMENTS} are allowed", fragments[_FRAGMENTS])]
    sizer = _Sizer({fragment.name.value: fragment for fragment in fragments})
    operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    try:
        return [
            GraphQLError(message, operation)
            for operation in operations
            for message in _excesses(sizer.of(operation.selection_set), limits)
        ]
    except RecursionError:  # a chain of fragments
        return [GraphQLError("the document is nested too deeply")]


def _excesses(size: Size, limits: Limits) -> Iterator[str]:
    if size.depth > limits.depth:
        yield f"the operation is {size.depth} deep; {limits.depth} is allowed"
    if size.introspection > _INTROSPECTION_DEPTH:
        yield f"the introspection is {size.introspection} deep; {_INTROSPECTION_DEPTH} is allowed"
    if size.fields > _FIELDS:
        yield f"{size.fields} fields, those of fragments each time; {_FIELDS} are allowed"
    if size.aliases > limits.aliases:
        yield f"{size.aliases} aliases; {limits.aliases} are allowed"


class _Sizer:
    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode]) -> None:
        self._fragments = fragments
        self._known: dict[str, Size] = {}

    def of(self, selection: SelectionSetNode | None) -> Size:
        sizes = [self._one(node) for node in selection.selections] if selection is not None else []
        return Size(
            max([s.depth for s in sizes], default=0),
            max([s.introspection for s in sizes], default=0),
            sum([s.fields for s in sizes]),
            sum([s.aliases for s in sizes]),
        )

    def _field(self, node: FieldNode) -> Size:
        depth, introspection, fields, aliases = self.of(node.selection_set)
        if node.name.value.startswith("__"):
            depth, introspection = 0, depth + 1
        else:
            depth += 1
        return Size(depth, introspection, fields + 1, aliases + (node.alias is not None))

    def _one(self, node: object) -> Size:
        match node:
            case FieldNode():
                return self._field(node)
            case InlineFragmentNode():
                return self.of(node.selection_set)
            case FragmentSpreadNode():
                return self._fragment(node.name.value)
        raise AssertionError(f"no selection: {node!r}")

    def _fragment(self, name: str) -> Size:
        if name not in self._known:
            self._known[name] = Size()  # in a cycle, which validation refuses
            if name in self._fragments:
                self._known[name] = self.of(self._fragments[name].selection_set)
        return self._known[name]


def _is_ambiguous(document: DocumentNode) -> bool:
    """Has it several operations? Where one of them has no name, validation refuses it, and says why."""
    operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    return len(operations) > 1 and all(operation.name for operation in operations)


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
        options: Any = context.parse_options
        options["max_tokens"] = self._prepared.limits.tokens
        options["max_source_length"] = _LONGEST
        options["allow_empty_selection_sets"] = False  # the specification's grammar has none; graphql-core's has
        if context.query is not None:  # a longer one is refused, and where it ends is not to be looked for
            context.query = context.query[: _LONGEST + 1]
        context.graphql_document = self._prepared.find(context.query)
        yield

    def on_validate(self) -> Iterator[None]:
        """See SchemaExtension: errors that are there already, or an empty list of them, stand for a validation."""
        context = self.execution_context
        document = context.graphql_document
        assert document is not None, "it was parsed"
        # Strawberry's own `operation_name` is the first operation's where the client names none.
        if context._provided_operation_name is None and _is_ambiguous(document):
            words = "the document has several operations: say which one by 'operationName'"
            context.pre_execution_errors = [GraphQLError(words)]
            yield
            return
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
