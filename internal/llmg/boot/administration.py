"""From settings to the admin API, and to the store of the catalog that it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from llmg.boot.current import check
from llmg.boot.exposure import Exposed
from llmg.boot.limits import make_redis
from llmg.boot.settings import Settings, SettingsError, with_tenants
from llmg.boot.settings.catalog import Endpoint, EndpointKey, Source, walk
from llmg.core.errors import Failure, Kind, invalid
from llmg.ports import CatalogStore, Clock, Document, Ids
from llmg.services.admin import Admin, Following

if TYPE_CHECKING:
    from llmg.stores.redis import Redis

log = structlog.get_logger("llmg.catalog")

_PATIENCE: Final = 15.0  # seconds in which a catalog to start with has to come
_WAIT: Final = (0.1, 1.0)  # seconds before it is tried again: at first, at most
_TOLD: Final = 5  # problems in one message


def make_store(settings: Callable[[], Settings], redis: Redis | None = None) -> CatalogStore:
    """The store that the settings name, as they are now; for their own tenants, one that follows them.

    `redis`: the process's connections, where there are any. Nothing is read yet.
    """
    source = settings().catalog
    if source is None:
        from llmg.stores.catalog_fixed import FixedCatalog

        return FixedCatalog(lambda: plain_tenants(settings()))
    if source.file is not None:
        from llmg.stores.catalog_file import FileCatalog

        def usable(tenants: dict[str, Any]) -> None:
            with translated():
                check_catalog(settings(), tenants)

        return FileCatalog(source.file, check=usable)
    from llmg.stores.catalog_redis import RedisCatalog

    config = settings().redis
    assert redis is not None
    assert config is not None
    return RedisCatalog(redis.client, prefix=config.prefix)


def make_admin(
    *,
    store: CatalogStore,
    settings: Callable[[], Settings],
    apply: Callable[[Mapping[str, Any], str], Awaitable[None]],
    clock: Clock,
    ids: Ids,
    held: Document | None = None,
) -> tuple[Admin, Following]:
    """The admin API, and what keeps this process at what the store holds (see `following`).

    `settings`: those in force. `apply` puts tenants in force (`Reloader.apply_tenants`): it raises SettingsError,
    Failure or Exposed, and leaves all as it was. It is not called for the configuration's own tenants. `held`: what is
    in force already.
    """
    fixed = settings().catalog is None

    async def validate(tenants: dict[str, Any]) -> None:
        with translated():
            await asyncio.to_thread(check_catalog, settings(), tenants)

    async def put(tenants: dict[str, Any], version: int) -> None:
        if not fixed:
            with translated():
                await apply(tenants, str(version))

    follow = Following(store, put, held=held)
    return Admin(store, validate=validate, following=follow, clock=clock, ids=ids), follow


async def take_over(follow: Following, stop: asyncio.Event, patience: float = _PATIENCE) -> bool:
    """Takes the first catalog over, before this process serves: it knows no key yet. False: `stop` was set first.

    What is wrong may be over in a moment, and others may serve meanwhile: it is tried for so many seconds. Then it
    raises Failure.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    wait, most = _WAIT
    told = False
    while not stop.is_set():
        try:
            await follow.refresh()
        except Failure as failure:
            if loop.time() + wait > until:
                raise
            if not told:
                words = "the catalog can't be taken over, so this process does not serve yet"
                log.error(words, reason=failure.message, detail=failure.detail, given_up_in=patience)
                told = True
        else:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await stop.wait()
        wait = min(2 * wait, most)
    return False


@asynccontextmanager
async def following(follow: Following) -> AsyncIterator[None]:
    """Takes each change of the catalog over, until this is left."""
    task = asyncio.create_task(follow.run(), name="catalog")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def load_catalog(settings: Settings, *, peek: bool = False) -> Settings:
    """The settings with the tenants that the catalog which they name holds now. `peek`: see `read_tenants`.

    Raises SettingsError, Failure or Exposed with where it is, where it can't be read or can't be used.
    """
    if settings.catalog is None:
        return settings
    with _told(settings.catalog):
        return await _with(settings, await read_tenants(settings, peek=peek))


async def open_catalog(settings: Settings) -> tuple[Settings, Document | None]:
    """The same, with what the catalog holds, for who serves it then; None: the settings name none. Raises likewise."""
    if settings.catalog is None:
        return settings, None
    with _told(settings.catalog):
        async with opened_store(settings) as store:
            document = await store.load()
        return await _with(settings, document.tenants), document


async def _with(settings: Settings, tenants: Mapping[str, Any]) -> Settings:
    assert settings.catalog is not None
    new = with_tenants(settings, tenants, _where(settings.catalog))
    await asyncio.to_thread(check, new)
    return new


def _where(source: Source) -> str:
    return "the catalog in Redis" if source.file is None else str(source.file.absolute())


@contextmanager
def _told(source: Source) -> Iterator[None]:
    """A Failure says where it is."""
    try:
        yield
    except Failure as failure:
        detail = f" ({failure.detail})" if failure.detail else ""
        raise Failure(failure.kind, f"{_where(source)}: {failure.message}{detail}") from None


async def read_tenants(settings: Settings, *, peek: bool = False) -> dict[str, Any]:
    """What the store holds that the settings name. `peek`: leave the log of a file alone, which is for those who serve.

    Raises Failure.
    """
    source = settings.catalog
    if peek and source is not None and source.file is not None:
        return _peek(source.file)
    async with opened_store(settings) as store:
        return (await store.load()).tenants


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[CatalogStore]:
    """The store that the settings name, with connections of its own until this is left."""
    redis = make_redis(settings.redis) if settings.redis else None
    try:
        yield make_store(lambda: settings, redis)
    finally:
        if redis is not None:
            await redis.aclose()


def _peek(file: Path) -> dict[str, Any]:
    from llmg.stores import catalog_text

    try:
        return catalog_text.parse(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Failure(Kind.INTERNAL, f"it can't be read: {error.strerror}") from None
    except ValueError as error:
        raise Failure(Kind.INTERNAL, str(error)) from None


def check_catalog(settings: Settings, tenants: Mapping[str, Any]) -> None:
    """Raises SettingsError, Failure or Exposed where these tenants can't be used with these settings."""
    check(with_tenants(settings, tenants, "catalog"))


@contextmanager
def translated() -> Iterator[None]:
    """What is wrong with a catalog, as a Failure that names the place."""
    try:
        yield
    except SettingsError as error:
        raise _failure(error) from None
    except Exposed as error:
        raise invalid(str(error)) from None


def _failure(error: SettingsError) -> Failure:
    problems = [f"{problem.path}: {problem.message}" for problem in error.problems[:_TOLD]]
    more = len(error.problems) - len(problems)
    words = "; ".join(problems) + (f"; and {more} more" if more else "")
    return invalid(f"the catalog would not hold: {words}", error.problems[0].path or None)


def plain_tenants(settings: Settings) -> dict[str, Any]:
    """The settings' own tenants as a store would hold them. Secrets are not in it, only that there are some."""
    tenants = {
        name: tenant.model_dump(mode="json", exclude_unset=True, warnings=False)  # of aliases, which are texts
        for name, tenant in settings.tenants.items()
    }
    for at, level in walk(settings.tenants):
        if isinstance(level, Endpoint) and level.keys:
            node: Any = {"tenants": tenants}
            for name in at:
                node = node[name]
            node["keys"] = [_plain_key(key) for key in level.keys]
    return tenants


def _plain_key(key: EndpointKey) -> dict[str, Any]:
    out: dict[str, Any] = {"id": key.id, "sha256": key.digest.hex(), "revoked": key.revoked}
    if key.expires is not None:
        out["expires"] = key.expires.isoformat()
    return out
