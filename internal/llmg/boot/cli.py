"""The command line: `llmg --help` lists it. Each command pays its own imports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from llmg.boot.admin import admin_app
from llmg.boot.importing import catalog_app

if TYPE_CHECKING:
    import socket
    import ssl

    from llmg.boot.chat import Dial
    from llmg.boot.reload import Source
    from llmg.boot.serve import Listeners
    from llmg.boot.settings import FlatModel, Settings, Target
    from llmg.boot.settings.policies import Policy
    from llmg.ports import Document

app = typer.Typer(name="llmg", no_args_is_help=True, add_completion=False, help="A multi-protocol LLM gateway.")
config_app = typer.Typer(no_args_is_help=True, help="Check the configuration, or print its JSON schema.")
app.add_typer(config_app, name="config")
app.add_typer(catalog_app, name="catalog")
app.add_typer(admin_app, name="admin")
routes_app = typer.Typer(no_args_is_help=True, help="Ask where requests would go.")
app.add_typer(routes_app, name="routes")

_REDIS_WITHIN = 1.5  # seconds for the catalog in Redis to be read, to check it

ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="The configuration file. Left out: config/config.yaml, else the default."),
]


Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Let everybody in who can reach it, also from other machines (server.insecure)."),
]


class Door(StrEnum):
    """A protocol that is served."""

    REST = "rest"
    WEBSOCKET = "websocket"
    GATEWAY = "gateway"
    GRAPHQL = "graphql"
    GRPC = "grpc"


@app.command()
def serve(
    config: ConfigFile = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Gateway processes (server.workers).")] = None,
    door: Annotated[
        list[Door] | None, typer.Option(help="Serve this protocol alone; may be repeated. Left out: all that are on.")
    ] = None,
    insecure: Insecure = False,
) -> None:
    """Serve until told to stop; SIGTERM lets requests in flight finish."""
    from llmg.boot import hangup

    hangup.hold()  # before all that takes its time
    import asyncio
    from contextlib import ExitStack

    import uvloop

    from llmg.boot import logs
    from llmg.boot.administration import open_catalog
    from llmg.boot.exposure import wanted, warn
    from llmg.boot.preflight import check_start
    from llmg.core.errors import Failure

    source = _read(config)
    settings = _only(source.read, door)
    if workers is not None:
        settings = _with(settings, "server", workers=workers)
    if insecure:
        settings = _with(settings, "server", insecure=True)
    logs.configure(settings.log.level, settings.log.format)
    with _telling(config):
        check_start(settings)
        found, catalog = asyncio.run(open_catalog(settings))  # so that what is wrong is told before it listens
        if settings.server.workers == 1:
            settings = found  # workers read it themselves, as each may start at any time
    places = wanted(settings)
    with ExitStack() as held:
        listeners = {name: held.enter_context(_listener(settings, place)) for name, place in places.items()}
        if settings.grpc.enabled:
            settings = _at_the_port(settings, held.enter_context(_reserved(settings)))
        warn(settings)
        try:
            uvloop.run(_serving(settings, listeners, source, catalog))
        except Failure as failure:
            _give_up(failure.message)


@contextmanager
def _telling(config: Path | None) -> Iterator[None]:
    """Ends the program where the settings can't be used, and says why: 2, they are wrong; 1, what they name is."""
    from llmg.boot.exposure import Exposed
    from llmg.boot.preflight import Unstartable
    from llmg.boot.settings import SettingsError
    from llmg.boot.tls import TlsError
    from llmg.core.errors import Failure

    try:
        yield
    except (Failure, TlsError, Unstartable) as error:
        _give_up(f"{error}{_said_at(error, config)}")
    except (SettingsError, Exposed) as error:
        _give_up(f"{error}{_said_at(error, config)}", 2)


def _said_at(error: Exception, config: Path | None) -> str:
    """Who said what is wrong, where that is known."""
    from llmg.boot.settings import origin

    keys = getattr(error, "keys", ())
    return f" ({origin(keys, config)})" if keys else ""


async def _serving(settings: Settings, listeners: Listeners, source: Source, catalog: Document | None) -> None:
    from llmg.boot.serve import run_alone

    if settings.server.workers == 1:
        await run_alone(settings, listeners, source, catalog)
        return
    from llmg.boot.supervisor import NobodyServes, supervise

    try:
        await supervise(settings, listeners, source)
    except NobodyServes as error:
        _give_up(str(error))


def _only(settings: Settings, doors: list[Door] | None) -> Settings:
    """With these doors on and the others off."""
    for name in Door if doors else ():
        settings = _with(settings, name.value, enabled=name in (doors or ()))
    return settings


def _with(settings: Settings, section: str, **values: object) -> Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


def _listener(settings: Settings, place: tuple[str, int]) -> socket.socket:
    from llmg.boot.exposure import host_and_port
    from llmg.boot.serve import listen

    try:
        return listen(place, settings.http.backlog)
    except OSError as error:
        name = "graphql" if place == settings.graphql.bind else "http"
        _cannot_listen(f"{host_and_port(place)} ({name}.server_addr)", error)


def _reserved(settings: Settings) -> socket.socket:
    from llmg.boot.serve import reserve

    try:
        return reserve(settings.grpc.bind)
    except OSError as error:
        _cannot_listen(f"{settings.grpc.server_addr} (grpc.server_addr)", error)


def _cannot_listen(address: str, error: OSError) -> NoReturn:
    number = error.errno or 0  # 0 or less: it is a name that can't be resolved
    reason = os.strerror(number) if number > 0 else error.strerror  # Python's own repeats the address
    _give_up(f"can't listen on {address}: {reason}")


def _at_the_port(settings: Settings, held: socket.socket) -> Settings:
    """With the address of gRPC as it was found: in numbers, one port for all workers."""
    from llmg.boot.exposure import host_and_port

    return _with(settings, "grpc", server_addr=host_and_port(held.getsockname()))


@app.command()
def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask. Left out: a conversation, ended by Ctrl-D.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="The model. Left out: the gateway's first.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="The gateway. Left out: where the configuration has it listen.")
    ] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="A system message.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    grpc: Annotated[bool, typer.Option("--grpc", help="By gRPC instead of HTTP; --url is then HOST:PORT.")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="LLMG_API_KEY", help="The gateway's API key.")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Trust the issuers in this file (PEM), and no others. For https.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Talk to a model through a running gateway."""
    from llmg.boot.chat import Conversation, run

    dial = _dial(url, grpc, api_key, ca, config, temperature, max_tokens)
    raise typer.Exit(run(Conversation(dial, model, system), prompt))


def _dial(
    url: str | None,
    grpc: bool,
    api_key: str | None,
    ca: Path | None,
    config: Path | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> Dial:
    """The line to the gateway that the options name."""
    from llmg.boot.chat import by_grpc, keyless, over_http
    from llmg.boot.settings.units import http_url

    if api_key and not re.fullmatch(r"[\x21-\x7e]+", api_key):
        _give_up("--api-key: expected printable ASCII characters without spaces", 2)
    if url is None:
        url = _where_it_listens(_load(config), grpc)
    asked = (api_key or None, temperature, max_tokens)
    try:
        url = http_url(url if "://" in url else f"{'https' if ca else 'http'}://{url}")
        dial = (by_grpc if grpc else over_http)(url, *asked, _issuers(ca, url))
    except ValueError as error:
        _give_up(f"--url: {error}", 2)
    return dial if api_key else keyless(dial)


def _issuers(ca: Path | None, url: str) -> ssl.SSLContext | None:
    from llmg.boot.chat import issuers

    if ca is None:
        return None
    if not url.lower().startswith("https://"):
        _give_up(f"--ca: there is no certificate to check at {url}", 2)
    try:
        return issuers(ca)
    except ValueError as error:
        _give_up(f"--ca: {error}", 2)


def _where_it_listens(settings: Settings, grpc: bool) -> str:
    section = settings.grpc if grpc else settings.http
    host, port = section.bind
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - listening there means all of them
    scheme = "http" if section.tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@app.command()
def models(config: ConfigFile = None) -> None:
    """List the models of the configuration, and who answers for them."""
    from rich.console import Console
    from rich.table import Table

    settings = _load(config)
    table = Table("model", "policy", "targets")
    for name, model in sorted(settings.models.items()):
        table.add_row(name, _policy(model.policy), "\n".join(_targets(model)))
    Console().print(table)


def _policy(config: Policy) -> str:
    """Its kind, and the options that were given."""
    given = sorted(config.model_fields_set - {"kind", "tiers"})
    options = [f"{name}: {getattr(config, name)}" for name in given]
    if config.kind == "priority":
        options += [_policy(inner) for inner in config.tiers]
    return f"{config.kind} ({', '.join(options)})" if options else config.kind


def _targets(model: FlatModel) -> list[str]:
    """In the order in which their tiers are asked, with what they weigh."""
    tiered = model.policy.kind == "priority"
    lines = []
    for target in sorted(model.targets, key=lambda target: target.priority):
        tier = f"{target.priority}: " if tiered else ""
        lines.append(f"{tier}{target.provider}/{target.model}{_weight(target, model)}")
    return lines


def _weight(target: Target, model: FlatModel) -> str:
    """Its share, where the policy gives each target one; else its weight, if it has one."""
    config = model.policy
    if config.kind == "priority":
        config = config.within(sorted({other.priority for other in model.targets}).index(target.priority))
    if config.kind in ("weighted", "random"):
        total = sum(other.weight for other in model.targets if other.priority == target.priority)
        return f" ({target.weight / total:.0%})"
    return f" (weight {target.weight:g})" if "weight" in target.model_fields_set else ""


@routes_app.command("explain")
def routes_explain(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model.")],
    prompt: Annotated[str, typer.Argument(help="What would be asked of it.")] = "Hello",
    url: Annotated[
        str | None, typer.Option(help="The gateway. Left out: where the configuration has it listen.")
    ] = None,
    grpc: Annotated[bool, typer.Option("--grpc", help="By gRPC instead of HTTP; --url is then HOST:PORT.")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="LLMG_API_KEY", help="The gateway's API key.")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Trust the issuers in this file (PEM), and no others. For https.")
    ] = None,
    level: Annotated[
        str,
        typer.Option(help="As the clients of this level would ask: tenants/acme/teams/search. Needs an admin's key."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "-c", "--config", help="Ask no gateway, but this configuration alone; --api-key is then one of its."
        ),
    ] = None,
) -> None:
    """Say which targets a request would be asked of, in which order, and why. Nobody is asked."""
    from llmg.boot import routes
    from llmg.boot.exposure import Exposed
    from llmg.boot.settings import SettingsError
    from llmg.core.errors import Failure

    if config is not None and (url is not None or grpc or ca is not None):
        _give_up("--config asks no gateway: it excludes --url, --grpc and --ca", 2)
    try:
        if config is None:
            found = routes.by_gateway(_dial(url, grpc, api_key, ca), model, prompt, level)
        else:
            given = context.get_parameter_source("api_key")
            own = None if given is not None and given.name == "ENVIRONMENT" else api_key  # that one is a gateway's
            found = routes.by_config(_load(config), own, model, prompt, level)
    except Failure as failure:
        _give_up(failure.message)
    except (SettingsError, Exposed) as error:
        _give_up(str(error), 2)
    routes.show(found, as_json)


@config_app.command("check")
def config_check(config: ConfigFile = None) -> None:
    """Say what is wrong with the configuration, or that nothing is."""
    from llmg.boot.preflight import check_start
    from llmg.boot.settings import files

    settings = _load(config)
    with _telling(config):
        check_start(settings)
        settings, unchecked = _with_catalog(settings) if settings.catalog else (settings, "")
    read = ", ".join(str(file) for file in files(config)) or "the default, as there is no file"
    typer.echo(f"ok: {read}; {_counted(settings)}{unchecked}")


def _with_catalog(settings: Settings) -> tuple[Settings, str]:
    """With the catalog's tenants, which have been checked; or else why they have not been, where Redis is away."""
    import asyncio

    from llmg.boot.administration import load_catalog
    from llmg.core.errors import Failure, Kind

    async def load() -> Settings:
        async with asyncio.timeout(_REDIS_WITHIN):
            return await load_catalog(settings, peek=True)

    try:
        return asyncio.run(load()), ""
    except TimeoutError:
        return settings, f"; not checked: the catalog in Redis, as it did not answer within {_REDIS_WITHIN:g} seconds"
    except Failure as failure:
        if failure.kind is not Kind.UPSTREAM_UNAVAILABLE:
            raise
        return settings, f"; not checked: {failure.message}"


def _counted(settings: Settings) -> str:
    from llmg.boot.exposure import everybody
    from llmg.boot.settings.catalog import Endpoint, walk

    endpoints = [level for _, level in walk(settings.tenants) if isinstance(level, Endpoint)]
    keys = len(settings.keys) + len(settings.admin.keys) + sum(len(endpoint.keys) for endpoint in endpoints)
    numbers = {
        "models": len(settings.models),
        "providers": len(settings.providers),
        "tenants": len(settings.tenants),
        "endpoints": len(endpoints),
        "keys": keys,
    }
    words = ", ".join(f"{name}: {number}" for name, number in numbers.items())
    return f"{words}; everybody may ask, without a key" if everybody(settings) else words


@config_app.command("schema")
def config_schema() -> None:
    """Print the configuration's JSON schema."""
    from llmg.boot.settings import schema_text

    typer.echo(schema_text(), nl=False)


def _show_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="The same as `version`.")
    ] = False,
) -> None:
    """A multi-protocol LLM gateway."""


@app.command()
def version() -> None:
    """Say which version and commit this is."""
    from llmg.boot.version import version as ask

    this = ask()
    typer.echo(f"llmg {this['version']} ({this['commit']}), Python {this['python']}")


def _read(config: Path | None) -> Source:
    from llmg.boot.reload import read
    from llmg.boot.settings import SettingsError

    try:
        return read(config)
    except SettingsError as error:
        _give_up(str(error), 2)


def _load(config: Path | None) -> Settings:
    from llmg.boot.settings import SettingsError, load

    try:
        return load(config)
    except SettingsError as error:
        _give_up(str(error), 2)


def _give_up(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def main() -> None:
    """The entry point."""
    app()


def grpc_alone() -> None:
    """`llmg-grpc`: `llmg serve` with gRPC alone."""
    _serve_only(Door.GRPC)


def graphql_alone() -> None:
    """`llmg-graphql`: `llmg serve` with GraphQL alone."""
    _serve_only(Door.GRAPHQL)


def _serve_only(door: Door) -> None:
    def alone(
        config: ConfigFile = None,
        workers: Annotated[int | None, typer.Option(min=1, help="Processes (server.workers).")] = None,
        insecure: Insecure = False,
    ) -> None:
        serve(config, workers, [door], insecure)

    alone.__doc__ = f"Serve {door.value} alone, until told to stop; SIGTERM lets requests in flight finish."
    typer.run(alone)
