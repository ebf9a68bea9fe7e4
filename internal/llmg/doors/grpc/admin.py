"""The admin API as a gRPC service."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import UNSET

from llmg.core.context import Context
from llmg.core.errors import Failure, invalid, not_implemented
from llmg.doors.grpc.services import Call, Inference
from llmg.gatewayapi.v1 import admin_pb2 as pb
from llmg.gatewayapi.v1.admin_pb2_grpc import AdminServiceServicer
from llmg.ports import AuditEntry
from llmg.services.admin import Admin, Changes, Issued, Key, Level, UpstreamChange
from llmg.services.admin.service import GRACE

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["AdminService"].full_name
_SETTINGS: Final = ("allow", "models", "upstreams", "limits", "labels", "alias")
_LIMITS: Final = ("requests_per_minute", "tokens_per_minute", "max_concurrent")
_FIRST: Final = re.compile(r"[.\[]")  # ends the first name of a place: `models["a.b"].targets[0]`

Given = Iterable[tuple[str, str | bytes]]
Refused = Callable[[MethodDescriptor, Any, Failure, Given], Awaitable[None]]


class Administration(AdminServiceServicer):
    """See admin.proto."""

    def __init__(self, inference: Inference, admin: Admin | None) -> None:
        """`admin` None: the catalog is not administered here."""
        self._inference = inference
        self._given = admin

    @property
    def _admin(self) -> Admin:
        if self._given is None:
            raise not_implemented("the administration of the catalog")
        return self._given

    async def ListLevels(self, request: pb.ListLevelsRequest, context: Call) -> pb.ListLevelsResponse:
        """A page of levels."""
        async with self._answering("ListLevels", request, context) as own:
            page = await self._admin.list_levels(own, request.parent, request.page_size, request.page_token)
            return pb.ListLevelsResponse(levels=map(_level, page.items), next_page_token=page.next)

    async def GetLevel(self, request: pb.GetLevelRequest, context: Call) -> pb.GetLevelResponse:
        """One level."""
        async with self._answering("GetLevel", request, context) as own:
            return pb.GetLevelResponse(level=_level(await self._admin.get_level(own, request.name)))

    async def CreateLevel(self, request: pb.CreateLevelRequest, context: Call) -> pb.CreateLevelResponse:
        """A new level."""
        async with self._answering("CreateLevel", request, context) as own:
            made = await self._admin.create_level(own, request.level.name, _changes(request.level))
            return pb.CreateLevelResponse(level=_level(made))

    async def UpdateLevel(self, request: pb.UpdateLevelRequest, context: Call) -> pb.UpdateLevelResponse:
        """Other settings."""
        async with self._answering("UpdateLevel", request, context) as own:
            changes = _changes(request.level, request.update_mask.paths)
            made = await self._admin.update_level(own, request.level.name, changes, request.level.etag)
            return pb.UpdateLevelResponse(level=_level(made))

    async def DeleteLevel(self, request: pb.DeleteLevelRequest, context: Call) -> pb.DeleteLevelResponse:
        """A level less."""
        async with self._answering("DeleteLevel", request, context) as own:
            await self._admin.delete_level(own, request.name, request.etag, force=request.force)
            return pb.DeleteLevelResponse()

    async def ListKeys(self, request: pb.ListKeysRequest, context: Call) -> pb.ListKeysResponse:
        """An endpoint's keys."""
        async with self._answering("ListKeys", request, context) as own:
            return pb.ListKeysResponse(keys=map(_key, await self._admin.list_keys(own, request.parent)))

    async def IssueKey(self, request: pb.IssueKeyRequest, context: Call) -> pb.IssueKeyResponse:
        """A new key."""
        async with self._answering("IssueKey", request, context) as own:
            issued = await self._admin.issue_key(own, request.parent, request.key_id, _expiry(request))
            return pb.IssueKeyResponse(**_issued(issued))

    async def RotateKey(self, request: pb.RotateKeyRequest, context: Call) -> pb.RotateKeyResponse:
        """A new key for an old one."""
        async with self._answering("RotateKey", request, context) as own:
            grace = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else GRACE
            issued = await self._admin.rotate_key(own, request.name, grace, request.key_id, _expiry(request))
            return pb.RotateKeyResponse(**_issued(issued))

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Call) -> pb.RevokeKeyResponse:
        """A key that is good no more."""
        async with self._answering("RevokeKey", request, context) as own:
            return pb.RevokeKeyResponse(key=_key(await self._admin.revoke_key(own, request.name)))

    async def DeleteKey(self, request: pb.DeleteKeyRequest, context: Call) -> pb.DeleteKeyResponse:
        """A key less."""
        async with self._answering("DeleteKey", request, context) as own:
            await self._admin.delete_key(own, request.name)
            return pb.DeleteKeyResponse()

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, context: Call) -> pb.ListAuditEntriesResponse:
        """A page of the log."""
        async with self._answering("ListAuditEntries", request, context) as own:
            page = await self._admin.audit(own, request.page_size, request.page_token)
            return pb.ListAuditEntriesResponse(entries=map(_entry, page.items), next_page_token=page.next)

    def _answering(self, method: str, request: Any, context: Call) -> Any:
        target = "" if isinstance(request, Failure) else _target(request)

        async def refused(own: Context, failure: Failure) -> None:
            if self._given is not None:
                await self._given.refused(own, method, target, failure)

        in_level = method in ("CreateLevel", "UpdateLevel")
        return self._inference.answering(request, context, _place if in_level else _as_it_is, refused)


def refusals(inference: Inference, admin: Admin) -> Refused:
    """For a door before the services, to be told of what it refuses itself: calls of this one are logged, with what is
    known of their messages, and who asked by their metadata."""

    async def refused(rpc: MethodDescriptor, known: Any, failure: Failure, metadata: Given, /) -> None:
        if rpc.containing_service.full_name != _SERVICE:
            return
        given = dict(metadata)
        context = inference.admission.context(inference.door, str(given["x-request-id"]))
        with suppress(Failure):  # whose it was is found out where that is known
            context.principal = inference.principal(given)
        await admin.refused(context, rpc.name, _target(known), failure)

    return refused


def _target(request: Any) -> str:
    """Of which level or key a request is."""
    names = ("name", "parent", "level")
    name = next((getattr(request, name) for name in names if name in request.DESCRIPTOR.fields_by_name), "")
    return name if isinstance(name, str) else name.name


def _as_it_is(param: str) -> str:
    return param


def _place(param: str) -> str:
    """Of what the use case calls so, in a request that holds a level."""
    first = _FIRST.split(param, maxsplit=1)[0]
    if first == "allow":
        return param.replace("allow", "level.allow.models", 1)
    return f"level.{param}" if first in ("name", "etag", *_SETTINGS) else param


# --- in --------------------------------------------------------------------------------------------------------------


def _changes(level: pb.Level, mask: Any = ()) -> Changes:
    """What a message says of a level: what it has; with a mask, what that names. Raises Failure."""
    found = {name: _given(level, name) for name in _SETTINGS}
    for name in mask:
        if name not in found:
            words = f"invalid 'update_mask': expected some of {', '.join(_SETTINGS)}"
            raise invalid(words, "update_mask")
    if mask:
        return Changes(**{name: found[name] for name in mask})
    return Changes(**{name: UNSET if value is None else value for name, value in found.items()})


def _given(level: pb.Level, name: str) -> Any:
    """A setting's value; None: there is none."""
    if name == "upstreams":
        return {name: _upstream_change(given) for name, given in level.upstreams.items()} or None
    if name == "labels":
        return dict(level.labels) or None
    if not level.HasField(name):
        return None
    value = getattr(level, name)
    if name == "allow":
        return tuple(value.models)
    if name == "models":
        return _plain(value)
    if name == "limits":
        return {limit: getattr(value, limit) for limit in _LIMITS if value.HasField(limit)}
    return value


def _upstream_change(given: pb.UpstreamOverride) -> UpstreamChange:
    texts = {name: getattr(given, name) for name in ("base_url", "address", "api_key", "token") if given.HasField(name)}
    return UpstreamChange(**texts, headers=dict(given.headers), remove_headers=tuple(given.remove_headers))


def _plain(struct: Any) -> dict[str, Any]:
    """A Struct's value, whose whole numbers are whole again."""
    found: dict[str, Any] = _whole(MessageToDict(struct))
    return found


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _expiry(request: Any) -> datetime | None:
    if not request.HasField("expire_time"):
        return None
    try:
        found: datetime = request.expire_time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid("invalid 'expire_time': expected a time from the year 1 to 9999", "expire_time") from None
    return found


# --- out -------------------------------------------------------------------------------------------------------------


def _level(level: Level) -> pb.Level:
    out = pb.Level(name=level.name, etag=level.etag, labels=level.labels, alias=level.alias)
    if level.allow is not None:
        out.allow.SetInParent()
        out.allow.models.extend(level.allow)
    if level.models:
        out.models.update(level.models)
    if level.limits:
        out.limits.CopyFrom(pb.LevelLimits(**{name: level.limits.get(name) for name in _LIMITS}))
    for name, held in level.upstreams.items():
        override = pb.UpstreamOverride(
            base_url=held.base_url,
            address=held.address,
            has_api_key=held.has_api_key,
            has_token=held.has_token,
            header_names=held.headers,
        )
        out.upstreams[name].CopyFrom(override)
    return out


def _key(key: Key) -> pb.EndpointKey:
    return pb.EndpointKey(name=key.name, digest=key.digest, expire_time=_timestamp(key.expires), revoked=key.revoked)


def _issued(issued: Issued) -> Mapping[str, Any]:
    return {"key": _key(issued.key), "secret": issued.secret}


def _entry(entry: AuditEntry) -> pb.AuditEntry:
    return pb.AuditEntry(
        time=_timestamp(datetime.fromtimestamp(entry.time, UTC)),
        actor=entry.actor,
        method=entry.method,
        resource=entry.resource,
        version_before=entry.before,
        version_after=entry.after,
        outcome=entry.outcome,
        request_id=entry.request_id,
        door=entry.door,
        changed=entry.changed,
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    out = Timestamp()
    out.FromDatetime(time)
    return out
