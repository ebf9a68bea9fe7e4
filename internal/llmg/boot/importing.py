"""`llmg catalog`: keys, and catalogs out of their store and into it; no gateway need run.

Each command pays its own imports.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from llmg.boot.settings import Settings
    from llmg.stores.predecessor import Imported

catalog_app = typer.Typer(no_args_is_help=True, help="Make keys for the catalog, export it, and put another in place.")


@catalog_app.command("new-key")
def new_key() -> None:
    """Make an API key, and say what stands for it in a catalog."""
    from hashlib import sha256

    from llmg.services.admin.service import new_secret

    secret = new_secret()
    typer.echo(f"key:    {secret}\nsha256: {sha256(secret.encode()).hexdigest()}")


@catalog_app.command("export")
def export_catalog(
    output: Annotated[
        Path | None, typer.Option(help="Write this file, which only you can read; JSON where its name ends in .json.")
    ] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="The configuration file.")] = None,
) -> None:
    """Print the catalog that is where the configuration's `catalog` says, with its secrets; `import` puts it back."""
    import asyncio

    from llmg.stores.catalog_text import serialize

    settings = _settings(config)
    if settings.catalog is None:
        _give_up("the catalog is in the configuration itself: there is no other one to export", 2)
    tenants = asyncio.run(_read(settings))
    if not tenants:  # no backup is better than one of nothing, in the place of a good one
        _give_up("there are no tenants in the catalog")
    data = serialize(tenants, as_yaml=output is None or output.suffix != ".json")
    if output is None:
        typer.echo(data.decode(), nl=False)
        return
    _write(output, data)
    typer.echo(f"exported: tenants: {len(tenants)}")


@catalog_app.command("import")
def import_catalog(
    redis: Annotated[
        str | None, typer.Option(help="The predecessor's Redis: redis://USER:PASSWORD@HOST:PORT/DATABASE.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A catalog as `export` writes it, or the predecessor's configuration file.")
    ] = None,
    provider: Annotated[
        str, typer.Option(help="The provider that its upstreams are overrides of, by its name in the configuration.")
    ] = "openai",
    save: Annotated[
        bool, typer.Option("--save", help="Put it where the configuration's `catalog` says, instead of printing it.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="With --save: also where there are tenants.")] = False,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="With --save: the configuration file.")] = None,
) -> None:
    """Read a catalog, ours or of llmg's predecessor, and print it as one of ours.

    What could not be taken over as it was is told beside it. With --save it has to fit the configuration.
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
    from llmg.stores.catalog_text import parse
    from llmg.stores.predecessor import Imported, from_file

    try:
        data = file.read_bytes()
    except OSError as error:
        _give_up(f"{file}: can't be read: {error.strerror}")
    try:
        notes = ("'${' stays as it is: variables are replaced in the configuration file only",) if b"${" in data else ()
        return Imported(parse(data), notes)
    except ValueError:  # it is none of ours
        pass
    try:
        return from_file(data, provider)
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


async def _read(settings: Settings) -> dict[str, Any]:
    from llmg.boot.administration import read_tenants
    from llmg.core.errors import Failure

    try:
        return await read_tenants(settings, peek=True)
    except Failure as failure:
        file = settings.catalog.file if settings.catalog else None
        _give_up(f"{file}: {failure.message}" if file else failure.message)


async def _save(settings: Settings, tenants: dict[str, Any], replace: bool) -> int:
    """The catalog's version then."""
    import time

    from llmg.boot.administration import check_catalog, opened_store, translated
    from llmg.core.errors import Failure
    from llmg.ports import AuditEntry, Conflict, Document

    try:
        with translated():
            check_catalog(settings, tenants)
        async with opened_store(settings) as store:
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
    return document.version


def _write(path: Path, data: bytes) -> None:
    """The whole file or nothing, for its owner alone."""
    from tempfile import NamedTemporaryFile

    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        _give_up(f"{path}: expected a file", 2)
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError as error:
        _give_up(f"{path}: can't be written: {error.strerror}")


def _settings(config: Path | None) -> Settings:
    from llmg.boot.settings import SettingsError, load

    try:
        return load(config)
    except SettingsError as error:
        _give_up(str(error), 2)


def _give_up(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
