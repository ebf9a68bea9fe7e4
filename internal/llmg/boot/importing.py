"""`llmg catalog`: keys, and catalogs from elsewhere; no gateway need run. Each command pays its own imports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from llmg.boot.settings import Settings
    from llmg.stores.predecessor import Imported

catalog_app = typer.Typer(no_args_is_help=True, help="Keys for the catalog, and catalogs from elsewhere.")


@catalog_app.command("new-key")
def new_key() -> None:
    """Make an API key, and say what stands for it in a catalog."""
    from hashlib import sha256

    from llmg.services.admin.service import new_secret

    secret = new_secret()
    typer.echo(f"key:    {secret}\nsha256: {sha256(secret.encode()).hexdigest()}")


@catalog_app.command("import")
def import_catalog(
    redis: Annotated[
        str | None, typer.Option(help="The predecessor's Redis: redis://USER:PASSWORD@HOST:PORT/DATABASE.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="The predecessor's configuration file, instead.")] = None,
    provider: Annotated[
        str, typer.Option(help="The provider that its upstreams are overrides of, by its name in the configuration.")
    ] = "openai",
    save: Annotated[
        bool, typer.Option("--save", help="Put it where the configuration's `catalog` says, instead of printing it.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="With --save: also where there are tenants.")] = False,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="With --save: the configuration file.")] = None,
) -> None:
    """Read the catalog of llmg's predecessor, and print it as one of ours.

    What could not be taken over as it was is told beside it.
    """
    import asyncio

    if (redis is None) == (file is None):
        _give_up("expected either --redis or --file", 2)
    found = _from_file(file, provider) if file is not None else asyncio.run(_from_redis(redis or "", provider))
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    if not save:
        from llmg.stores.catalog_text import serialize

        typer.echo(serialize(found.tenants, as_yaml=True).decode(), nl=False)
        return
    version = asyncio.run(_save(_settings(config), found.tenants, replace))
    typer.echo(f"saved: version {version}, tenants: {len(found.tenants)}")


def _from_file(file: Path, provider: str) -> Imported:
    from llmg.stores.predecessor import from_file

    try:
        return from_file(file.read_bytes(), provider)
    except OSError as error:
        _give_up(f"{file}: can't be read: {error.strerror}")
    except ValueError as error:
        _give_up(f"{file}: {error}")


async def _from_redis(url: str, provider: str) -> Imported:
    from redis.exceptions import RedisError

    from llmg.stores.predecessor import from_redis
    from llmg.stores.redis import Redis

    try:
        shared = Redis(url)
    except ValueError:  # whose words may have some of a password
        _give_up("--redis: expected a URL such as redis://127.0.0.1:6379/0", 2)
    try:
        return await from_redis(shared.client, provider)
    except (RedisError, OSError) as error:
        _give_up(f"--redis: it can't be read: {error}")
    finally:
        await shared.aclose()


async def _save(settings: Settings, tenants: dict[str, Any], replace: bool) -> int:
    """The catalog's version then."""
    import time

    from llmg.boot.administration import check_catalog, make_store, translated
    from llmg.boot.limits import make_redis
    from llmg.core.errors import Failure
    from llmg.ports import AuditEntry, Conflict, Document

    redis = make_redis(settings.redis) if settings.redis else None
    try:
        with translated():
            check_catalog(settings, tenants)
        store = make_store(lambda: settings, redis)
        held = await store.load()
        if held.tenants and not replace:
            _give_up("there are tenants in the catalog already: say --replace to lose them")
        document = Document(held.version + 1, tenants)
        entry = AuditEntry(
            time=time.time(),
            actor="llmg catalog import",
            method="Import",
            resource="",
            before=held.version,
            after=document.version,
        )
        await store.save(document, entry)
    except Failure as failure:
        _give_up(failure.message)
    except Conflict:
        _give_up("somebody else has just changed the catalog")
    finally:
        if redis is not None:
            await redis.aclose()
    return document.version


def _settings(config: Path | None) -> Settings:
    from llmg.boot.settings import SettingsError, load

    try:
        return load(config)
    except SettingsError as error:
        _give_up(str(error), 2)


def _give_up(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
