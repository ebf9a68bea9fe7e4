"""Which of a model's targets can do what a request asks, and why the others can't. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct
from msgspec.structs import replace

from llmg.core.errors import Failure, Kind, invalid, not_implemented
from llmg.core.request import Audio, Embed, Image, Part, Request, SchemaOutput, ToolChoice, ToolResult
from llmg.ports import Profile
from llmg.routing.models import Able, Group
from llmg.routing.policies.view import View

if TYPE_CHECKING:
    from llmg.core.context import Context


class Rejected(Struct, frozen=True):
    """A target, by its index in the model's list, that can't do what is asked. `reason`: in words, for people."""

    index: int
    reason: str


class Demand:
    """What a request asks of a target. One per request.

    What it needs is computed once, and only when a model is asked some of whose targets can't do everything.
    """

    __slots__ = ("_context", "_needs", "_request", "_size", "_view")

    def __init__(self, request: Request, view: View, context: Context) -> None:
        """`view` is the request's."""
        self._request = request
        self._view = view
        self._context = context
        self._needs: dict[str, str] | None = None
        self._size = 0

    def able(self, group: Group) -> list[int]:
        """The targets that can do it, as indexes, ascending."""
        found = self._with_operation(group)
        if not found.alike:
            return list(found.all)
        fit = [indexes for profile, indexes in found.alike if self._fits(profile)]
        return sorted(chain.from_iterable(fit)) if len(fit) < len(found.alike) else list(found.all)

    def rejected(self, group: Group) -> list[Rejected]:
        """The targets that can't, and why."""
        profiles = enumerate([target.profile for target in group.targets])
        return [Rejected(index, "; ".join(why)) for index, profile in profiles if (why := list(self._why(profile)))]

    def failure(self, group: Group) -> Failure:
        """What to say when none of the targets can.

        Only some of their context windows are too small: context_length_exceeded. A capability is missing:
        invalid_request, with the field that asks for it. The operation is: not_implemented.
        """
        profiles = [group.targets[index].profile for index in self._with_operation(group).all]
        if not profiles:
            return not_implemented(f"{self._operation} for the model '{group.name}'")
        windows = [p.context_window for p in profiles if p.context_window is not None and not self._missing(p)]
        if windows:
            return Failure(
                Kind.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt of about {self._tokens} tokens is too long for the model '{group.name}', "
                f"whose context window is {max(windows)}",
                param="input" if isinstance(self._request, Embed) else "messages",
            )
        missing = self._missing_everywhere(profiles)
        return invalid(
            f"no target of the model '{group.name}' can do {_and([NAMES[one] for one in missing])}",
            self._asked_for[missing[0]],
        )

    @property
    def _operation(self) -> str:
        return "embeddings" if isinstance(self._request, Embed) else "chat"

    def _with_operation(self, group: Group) -> Able:
        return group.operations.embed if isinstance(self._request, Embed) else group.operations.chat

    @property
    def _asked_for(self) -> dict[str, str]:
        if self._needs is None:
            self._needs = needs(self._request)
        return self._needs

    @property
    def _tokens(self) -> int:
        """Estimated, of the prompt; of texts for vectors, which are read one by one, the longest."""
        if not self._size:
            view = self._view
            if isinstance(self._request, Embed):
                longest = max(self._request.inputs, key=len)
                view = View(replace(self._request, inputs=(longest,)), self._context)
            self._size = view.input_tokens
        return self._size

    def _fits(self, profile: Profile) -> bool:
        if profile.lacks and not profile.lacks.isdisjoint(self._asked_for):
            return False
        return profile.context_window is None or self._tokens < profile.context_window

    def _missing(self, profile: Profile) -> list[str]:
        return [one for one in self._asked_for if one in profile.lacks]

    def _missing_everywhere(self, profiles: Sequence[Profile]) -> list[str]:
        """What none of them can do; if each of them lacks something else, all of it."""
        lacking = [self._missing(profile) for profile in profiles]
        return [one for one in self._asked_for if all(one in missing for missing in lacking)] or [
            one for one in self._asked_for if any(one in missing for missing in lacking)
        ]

    def _why(self, profile: Profile) -> Iterator[str]:
        if not (profile.embed if isinstance(self._request, Embed) else profile.chat):
            yield f"can't do {self._operation}"
            return
        if missing := self._missing(profile):
            yield f"can't do {_and([NAMES[one] for one in missing])}"
        if profile.context_window is not None and self._tokens >= profile.context_window:
            yield f"its context window of {profile.context_window} tokens is too small for about {self._tokens}"


NAMES: Final = {
    "tools": "tools",
    "vision": "vision",
    "json_schema": "JSON schemas",
    "reasoning": "reasoning",
    "audio": "audio",
}
"""The capabilities, in words."""


def needs(request: Request) -> dict[str, str]:
    """The capabilities that a request needs, each with its field, in OpenAI's words, that asks for it.

    JSON of any shape (`json_object`) is none: models have it that know no schemas.
    """
    if isinstance(request, Embed):
        return {}
    found = {}
    if request.tools and not (isinstance(request.tool_choice, ToolChoice) and request.tool_choice.mode == "none"):
        found["tools"] = "tools"
    kinds = _kinds([part for message in request.messages for part in message.parts])
    if Image in kinds:
        found["vision"] = "messages"
    if isinstance(request.output, SchemaOutput):
        found["json_schema"] = "response_format"
    if request.reasoning_effort is not UNSET and request.reasoning_effort != "none":
        found["reasoning"] = "reasoning_effort"
    if Audio in kinds:
        found["audio"] = "messages"
    elif request.extra is not UNSET and _speaks(request.extra.get("modalities")):
        found["audio"] = "modalities"
    return found


def _kinds(parts: Sequence[Part]) -> set[type[Part]]:
    """Those of the parts, and of the parts of tools' results."""
    kinds = {type(part) for part in parts}
    if ToolResult in kinds:
        for part in parts:
            if isinstance(part, ToolResult):
                kinds |= _kinds(part.parts)
    return kinds


def _speaks(modalities: Any) -> bool:
    return isinstance(modalities, list | tuple) and "audio" in modalities


def _and(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
