"""The use cases of those who may change the catalog, the same for every door.

Each change is made on the document that the store holds, checked as a whole, saved where nobody was faster (else made
again on what they saved), and taken over by this process before it is answered.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import wraps
from hashlib import sha256
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import msgspec
import structlog
from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.context import ADMIN, Context
from llmg.core.errors import Failure, Kind, conflict, internal, invalid
from llmg.ports import AuditEntry, CatalogStore, Clock, Conflict, Document, Ids
from llmg.services.admin import tree
from llmg.services.admin.addresses import check_addresses, check_kept
from llmg.services.admin.audit import Audit, Call
from llmg.services.admin.following import Following
from llmg.services.admin.names import KEYS, Path, check_id, endpoint_path, key_path, level_path, name_of, place
from llmg.services.admin.tree import Node
from llmg.services.admin.values import Changes, Issued, Key, Level, Page

log = structlog.get_logger("llmg.catalog")

LARGEST_PAGE: Final = 1000
GRACE: Final = 86400.0
"""Seconds for which a key that was rotated is good still."""

PATIENCE: Final = 3.0
"""Seconds that are left to changes when the process ends: fewer than a supervisor waits for it to close."""

_TRIES: Final = 100  # of a change, while others are faster
_SHOWN: Final = 8  # of a digest's 64 hexadecimal digits
_LONGEST: Final = 3650 * 86400.0  # seconds of grace

Edit = Callable[[Node], Node]
P = ParamSpec("P")
T = TypeVar("T")
Change = Callable[Concatenate["Admin", P], Coroutine[Any, Any, T]]


def new_secret() -> str:
    """A key: 256 random bits."""
    return f"llmg_{secrets.token_urlsafe(32)}"


def _to_the_end(change: Change[P, T]) -> Change[P, T]:
    """A change that was begun is made, taken over and logged, though who asked for it has left."""

    @wraps(change)
    async def begun(admin: Admin, /, *args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.ensure_future(change(admin, *args, **kwargs))
        admin._changing.add(task)
        task.add_done_callback(admin._changing.discard)
        return await asyncio.shield(task)

    return begun


class Admin:
    """All of them. Each asks who it is: raises Failure (permission_denied) for those who are no admin. Each call is
    in the log of the administration once, whatever became of it."""

    def __init__(
        self,
        store: CatalogStore,
        *,
        validate: Callable[[dict[str, Any]], Awaitable[None]],
        following: Following,
        clock: Clock,
        ids: Ids,
        secret: Callable[[], str] = new_secret,
    ) -> None:
        """`validate(tenants)` raises Failure (invalid_request), naming the field; `following` takes over what the store
        holds; `secret` makes a key's text."""
        self._changing: set[asyncio.Future[Any]] = set()
        self._store = store
        self._validate = validate
        self._following = following
        self._clock = clock
        self._ids = ids
        self._secret = secret
        self._one_at_a_time = asyncio.Lock()
        self._audit = Audit(store, lambda: following.version, clock)

    async def refused(self, context: Context, method: str, resource: str, failure: Failure) -> None:
        """A door refused what would have been this call, so it is logged. One that was made is already."""
        await self._audit.refused(context, method, resource, failure)

    async def aclose(self, patience: float = PATIENCE) -> None:
        """Waits for the changes that were begun, before the store is closed; those that take too long are given up."""
        if self._changing:
            _, late = await asyncio.wait(self._changing, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # --- levels ------------------------------------------------------------------------------------------------------

    async def list_levels(self, context: Context, parent: str, size: int = 0, token: str = "") -> Page[Level]:
        """The levels right below `parent`, by name; below the empty one lie the tenants. Raises Failure."""
        async with self._audit.call(context, "ListLevels", parent) as call:
            _check_admin(context)
            path = level_path(parent, "parent") if parent else ()
            most = _size(size)
            root = await self._root(call)
            later = [found for found in tree.children(tree.find(root, path), path) if name_of(found[0]) > token]
            page = [tree.shown(node, below) for below, node in later[:most]]
            return Page(page, page[-1].name if len(later) > most else "")

    async def get_level(self, context: Context, name: str) -> Level:
        """The level of that name, or the endpoint of that alias. Raises Failure."""
        async with self._audit.call(context, "GetLevel", name) as call:
            _check_admin(context)
            path = level_path(name) if "/" in name or not name else None
            root = await self._root(call)
            if path is None:
                path = tree.of_alias(root, name)
            if path is None:
                raise tree.missing(name)
            return tree.shown(tree.find(root, path), path)

    @_to_the_end
    async def create_level(self, context: Context, name: str, changes: Changes) -> Level:
        """A new level, below one that is there. Raises Failure."""
        async with self._audit.call(context, "CreateLevel", name) as call:
            _check_admin(context)
            path = level_path(name)
            _check_changes(changes)

            def edit(root: Node) -> Node:
                _check_alias(root, path, changes)
                return tree.add(root, path, tree.changed({}, changes))

            root = await self._change(call, path, edit)
        return tree.shown(tree.find(root, path), path)

    @_to_the_end
    async def update_level(self, context: Context, name: str, changes: Changes, etag: str = "") -> Level:
        """Other settings of a level; with an `etag`, if it is that of the level still. Raises Failure."""
        async with self._audit.call(context, "UpdateLevel", name) as call:
            _check_admin(context)
            path = level_path(name)
            _check_changes(changes)

            def edit(root: Node) -> Node:
                _check_etag(tree.find(root, path), etag)
                _check_alias(root, path, changes)
                after = tree.put(root, path, lambda node: tree.changed(node, changes))
                if changes.upstreams is not UNSET:
                    check_kept(root, after, path, changes.upstreams or {})
                return after

            root = await self._change(call, path, edit)
        return tree.shown(tree.find(root, path), path)

    @_to_the_end
    async def delete_level(self, context: Context, name: str, etag: str = "", *, force: bool = False) -> None:
        """Removes a level, with its keys; with `force`, all that is below it, too. Raises Failure."""
        async with self._audit.call(context, "DeleteLevel", name) as call:
            _check_admin(context)
            path = level_path(name)

            def edit(root: Node) -> Node:
                node = tree.find(root, path)
                _check_etag(node, etag)
                if not force and tree.children(node, path):
                    raise conflict(f"there are levels below '{name}': delete them first, or set 'force'", "force")
                return tree.remove(root, path)

            await self._change(call, path, edit)

    # --- keys --------------------------------------------------------------------------------------------------------

    async def list_keys(self, context: Context, parent: str) -> list[Key]:
        """The keys of an endpoint, as they were issued. Raises Failure."""
        async with self._audit.call(context, "ListKeys", parent) as call:
            _check_admin(context)
            path = endpoint_path(parent)
            node = tree.find(await self._root(call), path)
            return [_shown_key(path, held) for held in node.get(KEYS) or ()]

    @_to_the_end
    async def issue_key(self, context: Context, parent: str, id: str = "", expires: datetime | None = None) -> Issued:
        """A new key of an endpoint, by this id or one of our own. Raises Failure."""
        async with self._audit.call(context, "IssueKey", parent) as call:
            _check_admin(context)
            path = endpoint_path(parent)
            made, secret = self._new_key(id, expires)
            call.entry = replace(call.entry, resource=f"{parent}/{KEYS}/{made['id']}")

            def edit(root: Node) -> Node:
                return tree.put(root, path, lambda node: _with_key(node, made))

            await self._change(call, path, edit)
        return Issued(_shown_key(path, made), secret)

    @_to_the_end
    async def rotate_key(
        self, context: Context, name: str, grace: float = GRACE, id: str = "", expires: datetime | None = None
    ) -> Issued:
        """A new key in the place of one, which is good for `grace` seconds more. Raises Failure."""
        async with self._audit.call(context, "RotateKey", name) as call:
            _check_admin(context)
            path, old = key_path(name)
            if not 0 <= grace <= _LONGEST:
                raise invalid("invalid 'grace': expected 0 seconds or more, ten years at most", "grace")
            made, secret = self._new_key(id, expires)
            end = self._now() + timedelta(seconds=grace)

            def retire(held: Node) -> Node:
                if held.get("revoked") or _past(held, self._now()):
                    raise conflict(f"'{name}' is no longer good: issue a new key instead", "name")
                was = _expiry(held)
                return {**held, "expires": _text(end if was is None else min(was, end))}

            def edit(root: Node) -> Node:
                return tree.put(root, path, lambda node: _with_key(_with_other_key(node, name, old, retire), made))

            await self._change(call, path, edit)
        return Issued(_shown_key(path, made), secret)

    @_to_the_end
    async def revoke_key(self, context: Context, name: str) -> Key:
        """A key that is good no more, from now on. Raises Failure."""
        async with self._audit.call(context, "RevokeKey", name) as call:
            _check_admin(context)
            path, id = key_path(name)

            def edit(root: Node) -> Node:
                def revoked(held: Node) -> Node:
                    return {**held, "revoked": True}

                return tree.put(root, path, lambda node: _with_other_key(node, name, id, revoked))

            root = await self._change(call, path, edit)
        held = next(held for held in tree.find(root, path)[KEYS] if held.get("id") == id)
        return _shown_key(path, held)

    @_to_the_end
    async def delete_key(self, context: Context, name: str) -> None:
        """Removes a key, that is good no more then, from the list. Raises Failure."""
        async with self._audit.call(context, "DeleteKey", name) as call:
            _check_admin(context)
            path, id = key_path(name)
            await self._change(call, path, lambda root: tree.put(root, path, lambda node: _without_key(node, name, id)))

    # --- the log -----------------------------------------------------------------------------------------------------

    async def audit(self, context: Context, size: int = 0, token: str = "") -> Page[AuditEntry]:
        """What was asked for, the newest first. Raises Failure."""
        async with self._audit.call(context, "ListAuditEntries", ""):
            _check_admin(context)
            found, more = await self._store.entries(_size(size), token)
            return Page(found, more)

    # --- how ---------------------------------------------------------------------------------------------------------

    async def _root(self, call: Call) -> Node:
        """What is in force."""
        document = await self._following.in_force()
        call.entry = replace(call.entry, before=document.version, after=document.version)
        return {"tenants": document.tenants}

    async def _change(self, call: Call, path: Path, edit: Edit) -> Node:
        """Makes a change of a level, that goes into the store with its entry. Gives the tree as it is then."""
        async with self._one_at_a_time:
            document, call.entry = await self._save(call.entry, path, edit)
        await self._take_over()
        return {"tenants": document.tenants}

    async def _save(self, entry: AuditEntry, path: Path, edit: Edit) -> tuple[Document, AuditEntry]:
        for _ in range(_TRIES):
            held = await self._load()
            before = {"tenants": held.tenants}
            after = edit(before)
            document = Document(held.version + 1, after.get("tenants") or {})
            await self._check(document.tenants, path)
            entry = replace(
                entry, before=held.version, after=document.version, changed=tree.differences(before, after, path)
            )
            try:
                await self._store.save(document, entry)
            except Conflict:
                continue
            return document, entry
        raise Failure(Kind.OVERLOADED, "too many others change the catalog at the same time", retry_after=1.0)

    async def _load(self) -> Document:
        """What a change is made on: what the store holds, whether that is in force or not."""
        try:
            return await self._store.load()
        except Failure as failure:
            if failure.kind is not Kind.INTERNAL:
                raise
            words = f"{failure.message}; until that is mended nothing can be changed, and what was before is in force"
            raise conflict(words) from None

    async def _check(self, tenants: dict[str, Any], path: Path) -> None:
        try:
            await self._validate(tenants)
        except Failure as failure:
            if failure.param:  # a place in the catalog; in the level that is changed, one of that
                at = place(*(piece for level in path for piece in level))
                failure.param = failure.param.removeprefix(at + ".")
            raise

    async def _take_over(self) -> None:
        """The change is made, whether or not this process can take it over at once: else it follows as others do."""
        try:
            await self._following.refresh()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to call the change refused
            failure = error if isinstance(error, Failure) else internal(error)
            log.warning("the change is not in force here yet", reason=failure.message, detail=failure.detail)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.time()), UTC)

    def _new_key(self, id: str, expires: datetime | None) -> tuple[Node, str]:
        """What is kept of it, and the key. Raises Failure."""
        if id:
            check_id(id, "key_id")
        if expires is not None and expires <= self._now():
            raise invalid("invalid 'expire_time': expected a time to come", "expire_time")
        secret = self._secret()
        made: Node = {"id": id or f"k{self._ids.new()[:12]}", "sha256": sha256(secret.encode()).hexdigest()}
        if expires is not None:
            made["expires"] = _text(expires)
        return made, secret


def _check_admin(context: Context) -> None:
    if ADMIN not in context.principal.roles:
        raise Failure(Kind.PERMISSION_DENIED, "this needs an admin's key (`admin.keys` of the configuration)")


def _check_etag(node: Node, etag: str) -> None:
    if etag and etag != tree.etag(node):
        raise conflict("the level has changed since it was read with this 'etag'", "etag")


def _check_changes(changes: Changes) -> None:
    if b"${" in msgspec.json.encode(changes):  # nothing would put a variable's value in its place
        raise invalid("'${' is not taken here: variables are replaced in the configuration file only")
    if changes.upstreams:
        check_addresses(changes.upstreams)


def _check_alias(root: Node, path: Path, changes: Changes) -> None:
    if not changes.alias:
        return
    holder = tree.of_alias(root, changes.alias)
    if holder not in (None, path):
        words = f"'{changes.alias}' can't be the alias of '{name_of(path)}', as it is that of '{name_of(holder)}'"
        raise conflict(words, "alias")


def _size(asked: int) -> int:
    """Of a page. 0: the largest."""
    if asked < 0:
        raise invalid("invalid 'page_size': expected at least 0", "page_size")
    return min(asked or LARGEST_PAGE, LARGEST_PAGE)


# --- keys as they are kept -------------------------------------------------------------------------------------------


def _with_key(node: Node, made: Node) -> Node:
    held = node.get(KEYS) or []
    if any(other.get("id") == made["id"] for other in held):
        raise conflict(f"there is a key '{made['id']}' already", "key_id")
    return {**node, KEYS: [*held, made]}


def _with_other_key(node: Node, name: str, id: str, change: Callable[[Node], Node]) -> Node:
    held = node.get(KEYS) or []
    if not any(other.get("id") == id for other in held):
        raise tree.missing(name)
    return {**node, KEYS: [change(other) if other.get("id") == id else other for other in held]}


def _without_key(node: Node, name: str, id: str) -> Node:
    held = node.get(KEYS) or []
    left = [other for other in held if other.get("id") != id]
    if len(left) == len(held):
        raise tree.missing(name)
    return {**node, KEYS: left}


def _shown_key(path: Path, held: Node) -> Key:
    return Key(
        name=f"{name_of(path)}/{KEYS}/{held.get('id')}",
        digest=str(held.get("sha256") or "")[:_SHOWN],
        expires=_expiry(held),
        revoked=bool(held.get("revoked")),
    )


def _expiry(held: Node) -> datetime | None:
    text = held.get("expires")
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:  # what is held was checked when it was read
        raise internal(error) from None


def _past(held: Node, now: datetime) -> bool:
    expires = _expiry(held)
    return expires is not None and expires <= now


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
