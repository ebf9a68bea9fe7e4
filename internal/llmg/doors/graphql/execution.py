"""Execution, as graphql-core does it, but with less ado for lists of objects of which only plain attributes are asked.

A stream's events are such lists. By the general way each field costs 5 us: a path, an info, a resolver that gets an
attribute, tests whether something can be awaited. Here the attributes are read. Whatever is not as expected (a null
where there must be none, a value that does not fit) is left to the general way, errors and all.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from graphql import (
    GraphQLLeafType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    get_nullable_type,
    is_abstract_type,
    is_leaf_type,
)
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
from strawberry.types.field import StrawberryField

_TYPENAME: Final = "__typename"
_DEFINITION: Final = "strawberry-definition"


class _Attribute(NamedTuple):
    key: str  # in the answer
    name: str  # or the type's, for __typename
    type: GraphQLLeafType | None  # None: that of __typename
    required: bool


_Plan = tuple[_Attribute, ...]


class Execution(StrawberryGraphQLCoreExecutionContext):
    """Of one operation, or of one event of a subscription."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See graphql-core's."""
        super().__init__(*args, **kwargs)
        # By the items' class and the identity of what is asked of them, which is kept alive.
        self._plans: dict[tuple[type, int], tuple[object, _Plan | None]] = {}

    def build_per_event_executor(self, payload: Any) -> Any:
        """See graphql-core's; selections are collected anew for each event, so what is known of them must go, too."""
        executor: Any = super().build_per_event_executor(payload)
        executor._relevant_sub_fields = {}
        executor._plans = {}
        return executor

    def complete_list_item_value(
        self, item: Any, complete_results: list[Any], item_type: Any, field_details_list: Any, *more: Any
    ) -> bool:
        """See graphql-core's."""
        key = type(item), id(field_details_list)
        known = self._plans.get(key)
        if known is None:
            known = self._plans[key] = field_details_list, self._plan(type(item), item_type, field_details_list)
        plain = None if known[1] is None else self._read(known[1], item)
        if plain is None:
            return super().complete_list_item_value(item, complete_results, item_type, field_details_list, *more)
        complete_results.append(plain)
        return False

    def _plan(self, kind: type, item_type: Any, field_details_list: Any) -> _Plan | None:
        """How to read items of that class; None where more than plain attributes is asked of them."""
        definition = getattr(kind, "__strawberry_definition__", None)
        made = None if definition is None else self.schema.get_type(kind.__name__)
        expected = get_nullable_type(item_type)
        if not isinstance(made, GraphQLObjectType) or made.extensions.get(_DEFINITION) is not definition:
            return None
        if made is not expected and not (is_abstract_type(expected) and self.schema.is_sub_type(expected, made)):
            return None
        selection = self.collect_subfields(made, field_details_list).grouped_field_set
        return _plan(self.schema, made, selection)

    def _read(self, plan: _Plan, source: Any) -> dict[str, Any] | None:
        """The selection's values; None where one is not as expected."""
        out: dict[str, Any] = {}
        try:
            for key, name, leaf, required in plan:
                if leaf is None:
                    out[key] = name
                    continue
                value = getattr(source, name)
                if value is not None:
                    out[key] = self.complete_leaf_value(leaf, value)
                elif required:
                    return None
                else:
                    out[key] = None
        except Exception:  # noqa: BLE001 - the general way meets it again, and tells it
            return None
        return out


def _plan(schema: GraphQLSchema, parent_type: GraphQLObjectType, selection: Any) -> _Plan | None:
    """How to read a selection; None where it holds more than plain attributes."""
    out: list[_Attribute] = []
    for key, details in selection.items():
        node = details[0].node
        name = node.name.value
        field = schema.get_field(parent_type, name)
        if name == _TYPENAME:
            out.append(_Attribute(key, parent_type.name, None, True))
            continue
        if field is None or field.args or node.arguments:
            return None
        own: Any = field.extensions.get(_DEFINITION)
        if not _is_plain(own):
            return None
        required = isinstance(field.type, GraphQLNonNull)
        leaf: Any = field.type.of_type if isinstance(field.type, GraphQLNonNull) else field.type
        if not is_leaf_type(leaf):
            return None
        out.append(_Attribute(key, own.python_name, leaf, required))
    return tuple(out)


def _is_plain(field: Any) -> bool:
    return (
        isinstance(field, StrawberryField)
        and field.is_basic_field
        and not field.extensions
        and not field.permission_classes
    )
