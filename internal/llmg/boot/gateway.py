"""`llmg-gateway`: REST, with its OpenAPI document, in front of any gRPC server that has reflection."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from msgspec import Struct

if TYPE_CHECKING:
    import socket
    import ssl

    import grpc

    from llmg.doors.rest.app import Door

_BACKLOG: Final = 2048
_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})")


class Gateway(Struct, frozen=True, kw_only=True):
    """What `llmg-gateway` is told. Times in seconds, sizes in bytes."""

    target: str
    credentials: grpc.ChannelCredentials | None = None
    keepalive: float = 300.0
    connect_timeout: float = 10.0
    tls: ssl.SSLContext | None = None
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    max_body: int = 32 << 20
    heartbeat: float = 10.0
    grace: float = 30.0

    def channel(self) -> grpc.aio.Channel:
        """To the server."""
        import grpc

        from llmg.doors.gateway.remote import options

        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, options(self.keepalive))
        return grpc.aio.secure_channel(self.target, self.credentials, options(self.keepalive))


class LogFormat(StrEnum):
    """What the log looks like."""

    CONSOLE = "console"
    JSON = "json"


_DEFAULT: Final = Gateway(target="")


def command(
    target: Annotated[str, typer.Option(help="The gRPC server, HOST:PORT.")],
    listen: Annotated[str, typer.Option(help="Where to serve HTTP, HOST:PORT.")] = "127.0.0.1:8082",
    target_tls: Annotated[bool, typer.Option(help="Speak TLS with the server.")] = False,
    target_ca: Annotated[
        Path | None, typer.Option(help="Who may vouch for it, in PEM. Left out: who the system trusts.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate, in PEM: HTTPS instead of HTTP.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, in PEM, without a passphrase.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Who issues clients' certificates; with it, clients must show one.")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="The largest body that is read, in bytes.")] = _DEFAULT.max_body,
    host: Annotated[
        list[str] | None, typer.Option(help="A name of this server, besides those of loopback; may be repeated.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose web pages may ask here; may be repeated.")
    ] = None,
    heartbeat: Annotated[
        float, typer.Option(min=0.001, help="Seconds of silence in a stream before one goes.")
    ] = _DEFAULT.heartbeat,
    keepalive: Annotated[
        float, typer.Option(min=1, help="Seconds of silence before the server is asked for a sign of life.")
    ] = _DEFAULT.keepalive,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that requests have to end after SIGTERM.")
    ] = _DEFAULT.grace,
    connect_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds that the server has to say what it offers.")
    ] = _DEFAULT.connect_timeout,
    log_format: Annotated[LogFormat, typer.Option(help="What the log looks like.")] = LogFormat.CONSOLE,
) -> None:
    """Serve REST for a gRPC server, until told to stop; SIGTERM lets requests in flight finish."""
    import uvloop

    from llmg.boot import logs
    from llmg.core.errors import Failure

    place = _parse(listen)
    logs.configure("info", log_format.value)
    gateway = Gateway(
        target=target,
        credentials=_credentials(target_ca) if target_tls or target_ca is not None else None,
        keepalive=keepalive,
        connect_timeout=connect_timeout,
        tls=_tls(tls_cert, tls_key, tls_client_ca),
        hosts=host or (),
        origins=origin or (),
        max_body=max_body,
        heartbeat=heartbeat,
        grace=grace,
    )
    with _listener(place) as listener:
        try:
            uvloop.run(serve(gateway, listener))
        except Failure as failure:
            _give_up(f"{target}: {failure.message}")


def _parse(listen: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(listen)
    if found is None or int(found["port"]) > 65535:
        _give_up("--listen: expected HOST:PORT", 2)
    return found["v6"] or found["host"], int(found["port"])


def _listener(place: tuple[str, int]) -> socket.socket:
    from llmg.boot.serve import listen

    try:
        return listen(place, _BACKLOG)
    except OSError as error:
        _give_up(f"can't listen on {place[0]}:{place[1]}: {error.strerror}")


def _credentials(ca: Path | None) -> grpc.ChannelCredentials:
    import grpc

    try:
        return grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
    except OSError as error:
        _give_up(f"--target-ca: {ca} can't be read: {error.strerror}", 2)


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        _give_up("--tls-cert and --tls-key: one needs the other", 2)
    from llmg.boot import tls
    from llmg.boot.settings import Tls

    try:
        return tls.context(Tls(cert=cert, key=key, client_ca=client_ca), ["http/1.1"])
    except tls.TlsError as error:
        _give_up(str(error), 2)


def _give_up(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


async def serve(gateway: Gateway, listener: socket.socket) -> None:
    """Until a signal says so. Raises Failure when the server can't be described."""
    import structlog

    from llmg.boot.exposure import host_and_port
    from llmg.boot.serve import stop_on_signals
    from llmg.core.loopback import is_loopback
    from llmg.doors.http.guard import Guard
    from llmg.doors.http.server import HttpServer

    log = structlog.get_logger("llmg.gateway")
    stop = stop_on_signals()
    async with gateway.channel() as channel:
        app, rpcs = await make_app(gateway, channel, stop.is_set)
        server = HttpServer(
            Guard(
                app,
                hosts=gateway.hosts if is_loopback(listener.getsockname()[0]) else None,
                origins=gateway.origins,
                words=app.words,
            ),
            words=app.words,
            max_headers=64 << 10,
            header_timeout=10.0,
            body_timeout=60.0,
            keep_alive=75.0,
            backlog=_BACKLOG,
            access_log=False,
            draining=stop.is_set,
            tls=gateway.tls,
        )
        await server.start(listener)
        address = f"{'http' if gateway.tls is None else 'https'}://{host_and_port(listener.getsockname())}"
        log.info("ready", address=address, target=gateway.target, rpcs=rpcs)
        await stop.wait()
        log.info("draining", grace=gateway.grace)
        log.info("stopped", cut_off=await server.drain(gateway.grace))


async def make_app(gateway: Gateway, channel: grpc.aio.Channel, draining: Callable[[], bool]) -> tuple[Door, int]:
    """All that `llmg-gateway` answers, and how many RPCs of the server have a rule for HTTP. Raises Failure."""
    import msgspec

    from llmg.boot.version import version
    from llmg.core.errors import Failure, Kind
    from llmg.doors.gateway.app import make_gateway, words
    from llmg.doors.gateway.remote import Remote, describe
    from llmg.doors.http.pages import make_docs
    from llmg.doors.rest.app import Routes, make_door
    from llmg.wire.openapi.document import openapi
    from llmg.wire.transcoding.bindings import bindings, fixed_paths

    pool, services = await describe(channel, gateway.connect_timeout)
    try:
        table = bindings(services)
    except ValueError as error:
        raise Failure(Kind.UPSTREAM_PROTOCOL, str(error)) from None
    door = make_gateway(
        upstream=Remote(channel), bindings=table, pool=pool, max_body=gateway.max_body, heartbeat=gateway.heartbeat
    )
    this = version()
    title = ", ".join(sorted({binding.rpc.containing_service.file.package for binding in table})) or "gRPC"
    docs = make_docs(msgspec.json.encode(openapi(table, title=title, version=this["version"])))
    exact = {**dict.fromkeys(fixed_paths(table), door), **docs}
    routes = Routes(exact, {"/{path:rest}": door}, words={"": words})
    return make_door(routes, version=lambda: this, draining=draining), len({binding.path for binding in table})


def main() -> None:
    """The entry point."""
    typer.run(command)
