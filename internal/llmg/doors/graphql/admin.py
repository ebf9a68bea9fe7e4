"""The admin API in GraphQL's manner: fields of Query and Mutation, for the schema to inherit."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import strawberry
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    Node,
    SelectionSetNode,
    get_operation_ast,
)
from msgspec import UNSET
from msgspec.structs import asdict
from strawberry.scalars import JSON
from strawberry.utils.str_converters import to_camel_case

from llmg import ports
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, internal, invalid, not_implemented
from llmg.doors.graphql import errors
from llmg.doors.graphql.asking import Asking, Info
from llmg.doors.graphql.routes import Label
from llmg.doors.graphql.scalars import Int64
from llmg.services import admin
from llmg.services.admin.service import GRACE

# --- what is answered ------------------------------------------------------------------------------------------------


@strawberry.type(description="What a level of the catalog changes of a provider. Secrets are not shown.")
class Override:
    """See `services.admin.Upstream`."""

    provider: str = strawberry.field(description="The provider's name.")
    base_url: str | None = strawberry.field(description="Another address, for a provider over HTTP.")
    address: str | None = strawberry.field(description="Another address, for a running backend.")
    has_api_key: bool = strawberry.field(description="Whether it has a key of its own.")
    has_token: bool = strawberry.field(description="Whether it has a token of its own.")
    headers: list[str] = strawberry.field(description="The names of the headers that are set.")


@strawberry.type(description="What all requests below a level may take together. null: any number.")
class LevelLimits:
    """See the configuration's `limits`."""

    requests_per_minute: Int64 | None = strawberry.field(description="Requests a minute.")
    tokens_per_minute: Int64 | None = strawberry.field(description="Tokens a minute, of prompts and answers.")
    max_concurrent: Int64 | None = strawberry.field(description="Requests at the same time.")


@strawberry.type(description="A level of the catalog (tenant, team, group, endpoint): its own settings.")
class Level:
    """See `services.admin.Level`."""

    name: str = strawberry.field(description="Its path: tenants/acme/teams/search.")
    etag: str = strawberry.field(description="Stands for these settings.")
    allow: list[str] | None = strawberry.field(
        description="Which models of the levels above may be asked for here and below. null: all of them."
    )
    models: JSON = strawberry.field(description="Models of this level by name, in the configuration's shape.")
    overrides: list[Override] = strawberry.field(description="What is different in providers.")
    limits: LevelLimits = strawberry.field(description="What all requests below may take together.")
    labels: list[Label] = strawberry.field(description="Labels, over those of the levels above.")
    alias: str | None = strawberry.field(description="For an endpoint: a short name that no other has.")


@strawberry.type(description="A key of an endpoint. The key itself is not kept.")
class EndpointKey:
    """See `services.admin.Key`."""

    name: str = strawberry.field(description="Its path: its endpoint's, and its id.")
    digest: str = strawberry.field(description="How the SHA-256 of the key begins, in hexadecimal.")
    expire_time: datetime | None = strawberry.field(description="From when on it is no longer good. null: never.")
    revoked: bool = strawberry.field(description="Whether it was ended.")


@strawberry.type(description="A new key.")
class IssuedKey:
    """See `services.admin.Issued`."""

    key: EndpointKey = strawberry.field(description="What is kept of it.")
    secret: str = strawberry.field(description="The key: what clients show. It is told here, and never again.")


@strawberry.type(description="Who asked what of the catalog's administration, and what became of it.")
class AuditEntry:
    """See `ports.AuditEntry`."""

    time: datetime = strawberry.field(description="When.")
    actor: str = strawberry.field(
        description="The name of the administrator's key, or the path of another key; anonymous: no valid key was "
        "shown; empty: nobody asked the gateway."
    )
    method: str = strawberry.field(description="What was asked: CreateLevel, IssueKey ...; Edit: a change by hand.")
    resource: str = strawberry.field(description="Of which level or key.")
    version_before: Int64 = strawberry.field(description="The catalog's version before it.")
    version_after: Int64 = strawberry.field(description="After it: the same if nothing was changed.")
    outcome: str = strawberry.field(description="ok, or why it was refused.")
    request_id: str = strawberry.field(description="The request's id.")
    door: str = strawberry.field(description="By which protocol it came: grpc, gateway, graphql.")
    changed: list[str] = strawberry.field(
        description="The names of what is different now, such as limits.requests_per_minute. Values are not told."
    )


@strawberry.type(description="Some levels.")
class LevelPage:
    """A page."""

    levels: list[Level] = strawberry.field(description="The levels, by name.")
    next: str | None = strawberry.field(description="What `after` is for the next page; null: there is none.")


@strawberry.type(description="Some entries of the log.")
class AuditPage:
    """A page."""

    entries: list[AuditEntry] = strawberry.field(description="The entries, the newest first.")
    next: str | None = strawberry.field(description="What `after` is for the next page; null: there is none.")


# --- what is told ----------------------------------------------------------------------------------------------------


@strawberry.input(description="A header's name and value.")
class HeaderInput:
    """One of `OverrideInput.headers`."""

    name: str = strawberry.field(description="Its name.")
    value: str = strawberry.field(description="Its value.")


@strawberry.input(description="What is different in a provider. Secrets that are left out stay as they are.")
class OverrideInput:
    """See `services.admin.UpstreamChange`."""

    provider: str = strawberry.field(description="The provider's name.")
    base_url: str | None = strawberry.field(description="Another address, for a provider over HTTP.", default=None)
    address: str | None = strawberry.field(description="Another address, for a running backend.", default=None)
    api_key: str | None = strawberry.field(description="Another key; empty: none.", default=None)
    token: str | None = strawberry.field(description="Another token; empty: none.", default=None)
    headers: list[HeaderInput] = strawberry.field(description="Headers to be set.", default_factory=list)
    remove_headers: list[str] = strawberry.field(description="Headers to be no longer set.", default_factory=list)


@strawberry.input(description="What all requests below a level may take together. Left out: any number.")
class LevelLimitsInput:
    """See LevelLimits."""

    requests_per_minute: Int64 | None = strawberry.field(description="Requests a minute.", default=None)
    tokens_per_minute: Int64 | None = strawberry.field(
        description="Tokens a minute, of prompts and answers.", default=None
    )
    max_concurrent: Int64 | None = strawberry.field(description="Requests at the same time.", default=None)


@strawberry.input(description="A label.")
class LabelInput:
    """See Label."""

    name: str = strawberry.field(description="What it is about.")
    value: str = strawberry.field(description="What is said.")


@strawberry.input(description="Settings of a level. What is left out stays as it is; null: none.")
class LevelInput:
    """See `services.admin.Changes`."""

    allow: list[str] | None = strawberry.field(
        description="Which models of the levels above may be asked for; * is any text.", default=strawberry.UNSET
    )
    models: JSON | None = strawberry.field(
        description="Models of this level by name, in the configuration's shape.", default=strawberry.UNSET
    )
    overrides: list[OverrideInput] | None = strawberry.field(
        description="What is different in providers; of one that is not named, nothing.", default=strawberry.UNSET
    )
    limits: LevelLimitsInput | None = strawberry.field(
        description="What all requests below may take together.", default=strawberry.UNSET
    )
    labels: list[LabelInput] | None = strawberry.field(description="Labels.", default=strawberry.UNSET)
    alias: str | None = strawberry.field(
        description="For an endpoint: a short name that no other has.", default=strawberry.UNSET
    )


# --- from one to the other -------------------------------------------------------------------------------------------


def _level(level: admin.Level) -> Level:
    limits = {name: level.limits.get(name) for name in _LIMITS}
    return Level(
        name=level.name,
        etag=level.etag,
        allow=None if level.allow is None else list(level.allow),
        models=JSON(level.models),
        overrides=[_override(name, held) for name, held in level.upstreams.items()],
        limits=LevelLimits(**limits),
        labels=[Label(name=name, value=value) for name, value in level.labels.items()],
        alias=level.alias,
    )


def _override(provider: str, held: admin.Upstream) -> Override:
    return Override(**asdict(held) | {"provider": provider, "headers": list(held.headers)})


def _key(key: admin.Key) -> EndpointKey:
    return EndpointKey(name=key.name, digest=key.digest, expire_time=key.expires, revoked=key.revoked)


def _issued(issued: admin.Issued) -> IssuedKey:
    return IssuedKey(key=_key(issued.key), secret=issued.secret)


def _entry(entry: ports.AuditEntry) -> AuditEntry:
    return AuditEntry(
        time=datetime.fromtimestamp(entry.time, UTC),
        actor=entry.actor,
        method=entry.method,
        resource=entry.resource,
        version_before=Int64(entry.before),
        version_after=Int64(entry.after),
        outcome=entry.outcome,
        request_id=entry.request_id,
        door=entry.door,
        changed=list(entry.changed),
    )


def _changes(settings: LevelInput) -> admin.Changes:
    return admin.Changes(
        allow=_told(settings.allow, tuple),
        models=_told(settings.models, _mapping),
        upstreams=_told(settings.overrides, lambda given: {one.provider: _override_change(one) for one in given}),
        limits=_told(settings.limits, _limits),
        labels=_told(settings.labels, lambda given: {label.name: label.value for label in given}),
        alias=_told(settings.alias, str),
    )


def _told(value: Any, make: Any) -> Any:
    if value is strawberry.UNSET:
        return UNSET
    return None if value is None else make(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid("invalid 'models': expected an object", "models")
    return value


def _limits(given: LevelLimitsInput) -> dict[str, Any]:
    return {name: value for name in _LIMITS if (value := getattr(given, name)) is not None}


def _override_change(given: OverrideInput) -> admin.UpstreamChange:
    return admin.UpstreamChange(
        base_url=given.base_url,
        address=given.address,
        api_key=given.api_key,
        token=given.token,
        headers={header.name: header.value for header in given.headers},
        remove_headers=tuple(given.remove_headers),
    )


_LIMITS: Final = ("requests_per_minute", "tokens_per_minute", "max_concurrent")
# The arguments here, and the fields of LevelInput, by what the use cases call them.
_ARGUMENTS: Final = {"page_size": "first", "page_token": "after"}
_SETTINGS: Final = {"upstreams": "overrides"} | {
    name: name for name in ("allow", "models", "limits", "labels", "alias")
}
# The fields here, and the methods of the service that they are.
_METHODS: Final = {
    "level": "GetLevel",
    "levels": "ListLevels",
    "endpointKeys": "ListKeys",
    "auditEntries": "ListAuditEntries",
    "createLevel": "CreateLevel",
    "updateLevel": "UpdateLevel",
    "deleteLevel": "DeleteLevel",
    "issueKey": "IssueKey",
    "rotateKey": "RotateKey",
    "revokeKey": "RevokeKey",
    "deleteKey": "DeleteKey",
}
_KINDS: Final = {code: kind for kind, (code, _) in errors.CODES.items()}
_FIRST: Final = re.compile(r"[.\[]")  # ends the first name of a place: `models["a.b"].targets[0]`


def _place(param: str) -> str:
    first = _FIRST.split(param, maxsplit=1)[0]
    if first in _SETTINGS:
        return f"settings.{_SETTINGS[first]}{param.removeprefix(first)}"
    return param if first != param else to_camel_case(_ARGUMENTS.get(param, param))


@asynccontextmanager
async def _administering(
    info: Info, method: str, resource: str, parent: str = "parent"
) -> AsyncIterator[tuple[admin.Admin, Context]]:
    """The use cases and the operation's context. `method`: what is asked of them, of which level or key; `parent`: what
    the argument for a parent is called here."""
    asking = info.context
    use = asking.gateway.admin
    with asking.answering() as context:
        asking.called.add(info.path.key)
        if use is None:
            raise not_implemented("the admin API")
        try:
            yield use, context
        except Failure as failure:
            await use.refused(context, method, resource, failure)
            if failure.param:
                failure.param = parent if failure.param == "parent" else _place(failure.param)
            raise
        except Exception as mistake:
            await use.refused(context, method, resource, internal(mistake))
            raise


async def log_refused(asking: Asking, operation_name: str | None, errors_: Iterable[GraphQLError]) -> None:
    """Logs the calls of the administration that an operation's errors kept from being made: of all its fields, if it
    was not executed, or of those whose arguments did not fit. One that was not executed leaves a line for each method:
    it may name the same field very often, and nothing is known of what it would have been asked of."""
    use = asking.gateway.admin
    if use is None or asking.document is None:
        return
    why = {None if error.path is None else error.path[0]: error for error in errors_}
    refused: dict[str, tuple[str, GraphQLError]] = {}
    for key, field in _root_fields(asking.document, operation_name):
        error = why.get(None, why.get(key))
        if error is not None and field in _METHODS and key not in asking.called:
            refused[field if error.path is None else key] = _METHODS[field], error
    for method, error in refused.values():
        told = error.extensions or {}
        failure = Failure(_KINDS.get(str(told.get("code")), Kind.INVALID_REQUEST), error.message)
        await use.refused(_unmade(asking, told.get("requestId")), method, "", failure)


def _unmade(asking: Asking, request_id: Any) -> Context:
    """Of a call that is not made. Whose it was is found out where that is known."""
    admission = asking.gateway.admission
    context = admission.context("graphql", admission.request_id(request_id))
    with suppress(Failure):
        context.principal = asking.admit()
    return context


def _root_fields(document: DocumentNode, operation_name: str | None) -> Iterator[tuple[str, str]]:
    """What an operation asks for: fields' keys in the answer, and their names; nothing, where it is not known which
    operation is asked for. Fragments are looked at once."""
    operation = get_operation_ast(document, operation_name)
    fragments = {one.name.value: one for one in document.definitions if isinstance(one, FragmentDefinitionNode)}
    left: list[Node] = [] if operation is None else [operation.selection_set]
    while left:
        node = left.pop()
        if isinstance(node, SelectionSetNode):
            left += reversed(node.selections)
        elif isinstance(node, InlineFragmentNode | FragmentDefinitionNode):
            left.append(node.selection_set)
        elif isinstance(node, FragmentSpreadNode) and node.name.value in fragments:
            left.append(fragments.pop(node.name.value))
        elif isinstance(node, FieldNode):
            yield (node.alias or node.name).value, node.name.value


# --- fields ----------------------------------------------------------------------------------------------------------


def _argument(description: str) -> Any:
    return strawberry.argument(description=description)


_Name = Annotated[str, _argument("The level's path.")]
_NameOrAlias = Annotated[str, _argument("The level's path; of an endpoint, its alias will do.")]
_Endpoint = Annotated[str, _argument("The endpoint's path.")]
_KeyName = Annotated[str, _argument("The key's path.")]
_Parent = Annotated[str, _argument("The level above them. Empty: the tenants.")]
_First = Annotated[int, _argument("The most to give at once. 0: a thousand.")]
_After = Annotated[str, _argument("Where to go on: the last page's `next`.")]
_Settings = Annotated[LevelInput, _argument("The settings.")]
_Etag = Annotated[str, _argument("Only if this is still the level's. Empty: whatever it is.")]
_Force = Annotated[bool, _argument("Remove all that is below it, too.")]
_KeyId = Annotated[str, _argument("The new key's id. Empty: one is made up.")]
_ExpireTime = Annotated[datetime | None, _argument("From when on the new key is no longer good. Absent: never.")]
_Grace = Annotated[float, _argument("How many seconds the old key is good still.")]


async def _get_level(info: Info, name: _NameOrAlias) -> Level:
    async with _administering(info, "GetLevel", name) as (use, context):
        return _level(await use.get_level(context, name))


async def _list_levels(info: Info, parent: _Parent = "", first: _First = 0, after: _After = "") -> LevelPage:
    async with _administering(info, "ListLevels", parent) as (use, context):
        page = await use.list_levels(context, parent, first, after)
        return LevelPage(levels=[_level(level) for level in page.items], next=page.next or None)


async def _list_keys(info: Info, endpoint: _Endpoint) -> list[EndpointKey]:
    async with _administering(info, "ListKeys", endpoint, "endpoint") as (use, context):
        return [_key(key) for key in await use.list_keys(context, endpoint)]


async def _audit(info: Info, first: _First = 0, after: _After = "") -> AuditPage:
    async with _administering(info, "ListAuditEntries", "") as (use, context):
        page = await use.audit(context, first, after)
        return AuditPage(entries=[_entry(entry) for entry in page.items], next=page.next or None)


async def _create_level(info: Info, name: _Name, settings: _Settings) -> Level:
    async with _administering(info, "CreateLevel", name) as (use, context):
        return _level(await use.create_level(context, name, _changes(settings)))


async def _update_level(info: Info, name: _Name, settings: _Settings, etag: _Etag = "") -> Level:
    async with _administering(info, "UpdateLevel", name) as (use, context):
        return _level(await use.update_level(context, name, _changes(settings), etag))


async def _delete_level(info: Info, name: _Name, etag: _Etag = "", force: _Force = False) -> str:
    async with _administering(info, "DeleteLevel", name) as (use, context):
        await use.delete_level(context, name, etag, force=force)
        return name


async def _issue_key(
    info: Info, endpoint: _Endpoint, key_id: _KeyId = "", expire_time: _ExpireTime = None
) -> IssuedKey:
    async with _administering(info, "IssueKey", endpoint, "endpoint") as (use, context):
        return _issued(await use.issue_key(context, endpoint, key_id, _zoned(expire_time)))


async def _rotate_key(
    info: Info, name: _KeyName, grace: _Grace = GRACE, key_id: _KeyId = "", expire_time: _ExpireTime = None
) -> IssuedKey:
    async with _administering(info, "RotateKey", name) as (use, context):
        return _issued(await use.rotate_key(context, name, grace, key_id, _zoned(expire_time)))


async def _revoke_key(info: Info, name: _KeyName) -> EndpointKey:
    async with _administering(info, "RevokeKey", name) as (use, context):
        return _key(await use.revoke_key(context, name))


async def _delete_key(info: Info, name: _KeyName) -> str:
    async with _administering(info, "DeleteKey", name) as (use, context):
        await use.delete_key(context, name)
        return name


def _zoned(time: datetime | None) -> datetime | None:
    if time is not None and time.tzinfo is None:
        raise invalid("invalid 'expireTime': expected a time with its zone", "expire_time")
    return time


@strawberry.type(description="Reads of the catalog, for administrators.")
class AdminQuery:
    """See admin.proto."""

    level: Level | None = strawberry.field(resolver=_get_level, description="A level of the catalog.")
    levels: LevelPage = strawberry.field(resolver=_list_levels, description="The levels right below a level, by name.")
    endpoint_keys: list[EndpointKey] = strawberry.field(
        resolver=_list_keys, description="The keys of an endpoint, in the order in which they were issued."
    )
    audit_entries: AuditPage = strawberry.field(
        resolver=_audit, description="The log of the catalog's changes, and of those that were refused."
    )


@strawberry.type(description="Changes of the catalog, for administrators.")
class AdminMutation:
    """See admin.proto."""

    create_level: Level = strawberry.mutation(
        resolver=_create_level, description="Adds a level below one that is there."
    )
    update_level: Level = strawberry.mutation(
        resolver=_update_level, description="Changes the settings of a level that are given; each as a whole."
    )
    delete_level: str = strawberry.mutation(
        resolver=_delete_level, description="Removes a level, and an endpoint's keys with it. Gives its path."
    )
    issue_key: IssuedKey = strawberry.mutation(
        resolver=_issue_key, description="Makes a key for an endpoint. This is the only time that it is shown."
    )
    rotate_key: IssuedKey = strawberry.mutation(
        resolver=_rotate_key,
        description="Makes a key that takes the place of another, which is good for a while still.",
    )
    revoke_key: EndpointKey = strawberry.mutation(resolver=_revoke_key, description="Ends a key at once.")
    delete_key: str = strawberry.mutation(
        resolver=_delete_key, description="Removes a key from the list; it is no longer good then. Gives its path."
    )
