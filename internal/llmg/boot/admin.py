"""`llmg admin`: the admin API of a running gateway, by gRPC. Each command pays its own imports.

What goes in and comes out is JSON, as the gateway's REST has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from msgspec import Struct

admin_app = typer.Typer(no_args_is_help=True, help="Change who may ask for what, while the gateway runs.")

_PATIENCE = 30.0  # seconds for an answer

Name = Annotated[str, typer.Argument(help="The level's path, such as tenants/acme/teams/search.")]
Endpoint = Annotated[str, typer.Argument(help="The endpoint's path.")]
KeyName = Annotated[str, typer.Argument(help="The key's path: its endpoint's, and /keys/ID.")]
Settings = Annotated[str, typer.Argument(help="The settings, in JSON.")]
KeyId = Annotated[str, typer.Option("--id", help="The new key's id. Left out: one is made up.")]
Expires = Annotated[str | None, typer.Option(help="From when on it is no longer good: 2026-12-31T00:00:00Z.")]
Etag = Annotated[str, typer.Option(help="Only if this is still the level's.")]


class Line(Struct, frozen=True):
    """How the gateway is reached."""

    address: str
    key: str
    ca: Path | None


@admin_app.callback()
def _options(
    context: typer.Context,
    address: Annotated[str, typer.Option(help="Where the gateway's gRPC listens.")] = "127.0.0.1:8081",
    key: Annotated[str, typer.Option(envvar="LLMG_ADMIN_KEY", help="The administrator's key.")] = "",
    ca: Annotated[Path | None, typer.Option(help="By TLS; trust the issuers in this file (PEM).")] = None,
) -> None:
    """Change who may ask for what, while the gateway runs."""
    context.obj = Line(address, key, ca)


@admin_app.command()
def levels(
    context: typer.Context, parent: Annotated[str, typer.Argument(help="The level above. Left out: tenants.")] = ""
) -> None:
    """List the levels right below one."""
    _ask(context, "ListLevels", parent=parent)


@admin_app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The level's path; of an endpoint, its alias will do.")],
) -> None:
    """Show a level's own settings."""
    _ask(context, "GetLevel", name=name)


@admin_app.command()
def create(context: typer.Context, name: Name, settings: Settings = "{}") -> None:
    """Add a level below one that is there."""
    _ask(context, "CreateLevel", level={**_settings(settings), "name": name})


@admin_app.command("set")
def set_(
    context: typer.Context,
    name: Name,
    settings: Settings = "{}",
    clear: Annotated[list[str] | None, typer.Option(help="A setting to take away; may be repeated.")] = None,
    etag: Etag = "",
) -> None:
    """Change the settings of a level that are given."""
    given = _settings(settings)
    mask = {"updateMask": ",".join([*given, *clear])} if clear else {}
    _ask(context, "UpdateLevel", level={**given, "name": name, "etag": etag}, **mask)


@admin_app.command()
def delete(
    context: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="With all that is below it.")] = False,
    etag: Etag = "",
) -> None:
    """Remove a level."""
    _ask(context, "DeleteLevel", name=name, force=force, etag=etag)


@admin_app.command()
def keys(context: typer.Context, endpoint: Endpoint) -> None:
    """List the keys of an endpoint."""
    _ask(context, "ListKeys", parent=endpoint)


@admin_app.command("issue-key")
def issue_key(context: typer.Context, endpoint: Endpoint, id: KeyId = "", expires: Expires = None) -> None:
    """Make a key for an endpoint. It is shown now, and never again."""
    _ask(context, "IssueKey", parent=endpoint, keyId=id, expireTime=expires)


@admin_app.command("rotate-key")
def rotate_key(
    context: typer.Context,
    name: KeyName,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for which the old one is good still.")] = 86400.0,
    id: KeyId = "",
    expires: Expires = None,
) -> None:
    """Make a key that takes the place of another. It is shown now, and never again."""
    _ask(context, "RotateKey", name=name, grace=f"{grace:.9f}s", keyId=id, expireTime=expires)


@admin_app.command("revoke-key")
def revoke_key(context: typer.Context, name: KeyName) -> None:
    """End a key at once."""
    _ask(context, "RevokeKey", name=name)


@admin_app.command("delete-key")
def delete_key(context: typer.Context, name: KeyName) -> None:
    """Remove a key from the list; it is no longer good then."""
    _ask(context, "DeleteKey", name=name)


@admin_app.command()
def log(
    context: typer.Context,
    size: Annotated[int, typer.Option(min=1, help="How many entries at most.")] = 20,
    token: Annotated[str, typer.Option(help="Where to go on: the last answer's nextPageToken.")] = "",
) -> None:
    """Show who changed what, the newest first."""
    _ask(context, "ListAuditEntries", pageSize=size, pageToken=token)


def _settings(text: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text)
    except ValueError as error:
        _give_up(f"the settings are not valid JSON: {error}", 2)
    if not isinstance(found, dict):
        _give_up("the settings must be an object in JSON", 2)
    return found


def _ask(context: typer.Context, method: str, **fields: Any) -> None:
    """Makes the call, and prints the answer."""
    import grpc
    from google.protobuf import json_format

    from llmg.gatewayapi.v1 import admin_pb2

    line: Line = context.obj
    rpc = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods_by_name[method]
    request: Any = getattr(admin_pb2, rpc.input_type.name)()
    answer: Any = getattr(admin_pb2, rpc.output_type.name)
    try:
        json_format.ParseDict({name: value for name, value in fields.items() if value is not None}, request)
    except json_format.ParseError as error:
        _give_up(str(error), 2)
    with _channel(line) as channel:
        call = channel.unary_unary(
            f"/{rpc.containing_service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            response = call(request, metadata=(("authorization", f"Bearer {line.key}"),), timeout=_PATIENCE)
        except grpc.RpcError as error:
            _give_up(_why(line, error))
    typer.echo(json_format.MessageToJson(response, ensure_ascii=False))


def _why(line: Line, error: Any) -> str:
    """What the call failed with, in words. `error` is a call, too."""
    import grpc

    told = any(name == "grpc-status-details-bin" for name, _ in error.trailing_metadata() or ())
    if error.code() is grpc.StatusCode.UNAVAILABLE and not told:  # no gateway says so
        return _unreached(line, error.details())
    if error.code() is grpc.StatusCode.UNAUTHENTICATED and not line.key:
        return "the gateway needs an administrator's key: name it with --key, or in LLMG_ADMIN_KEY"
    return f"{error.details()} ({error.code().name})"


def _unreached(line: Line, said: str) -> str:
    """Why no gateway answers, in the words of `llmg chat`. gRPC's own (`said`) stand for what is no connection."""
    import socket

    from llmg.boot.chat import unreached

    host, _, port = line.address.rpartition(":")
    reason: OSError | None = None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except ValueError:  # another way to name it, such as unix:
        pass
    except OSError as error:
        reason = error
    otherwise = f"{said}; it may want {'no --ca' if line.ca else '--ca'}, or be no gRPC"
    return unreached(line.address, reason, otherwise, "--address").message


def _channel(line: Line) -> Any:
    import grpc

    if line.ca is None:
        return grpc.insecure_channel(line.address)
    try:
        return grpc.secure_channel(line.address, grpc.ssl_channel_credentials(line.ca.read_bytes()))
    except OSError as error:
        _give_up(f"--ca: {line.ca} can't be read: {error.strerror}", 2)


def _give_up(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
