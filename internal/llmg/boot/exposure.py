"""Whom the gateway lets in, and who can reach it: without keys only this machine may, if nobody says otherwise."""

from __future__ import annotations

import socket

import structlog

from llmg.boot.settings import Settings
from llmg.boot.settings.problems import Keys
from llmg.core.context import ADMIN, Principal
from llmg.core.loopback import is_loopback

log = structlog.get_logger("llmg.exposure")


class Exposed(Exception):
    """Others could use the gateway without a key. The message says where, and what to do. `keys`: where it is said."""

    def __init__(self, message: str, keys: Keys = ()) -> None:
        super().__init__(message)
        self.keys = keys


def everybody(settings: Settings) -> bool:
    """May anybody ask, without a key? Where nothing is said of who may."""
    return not (settings.keys or settings.admin.keys or settings.tenants or settings.catalog)


def sees_details(settings: Settings, principal: Principal) -> bool:
    """Is the caller told how targets do and what is noted of them? Administrators are, and everybody where nobody needs
    a key, or where the settings say so."""
    return ADMIN in principal.roles or settings.server.explain == "everybody" or everybody(settings)


def check_closed(old: Settings, new: Settings) -> None:
    """Raises Exposed when a change would let everybody in where a key is needed: it may be no more than a file that was
    emptied to be written."""
    if everybody(new) and not everybody(old):
        raise Exposed("there are no keys left, which would let everybody in without a key: that needs a restart")


def check_exposure(settings: Settings) -> None:
    """Raises Exposed when others can reach a gateway that lets everybody in, and nobody said that they may."""
    if settings.server.insecure or not everybody(settings):
        return
    for name, (host, port) in bound(settings).items():
        if not on_loopback(host):
            raise Exposed(
                f"{name}.server_addr is {host_and_port((host, port))}, where others can reach it, and "
                "there are no keys, so everybody could ask: either set keys (`keys` or `tenants`), or say that "
                "everybody may with --insecure (server.insecure: true)",
                (name, "server_addr"),
            )


def warn(settings: Settings) -> None:
    """Says in the log what others can do where they can reach it: ask without a key, or read keys on their way."""
    reached = {name: place for name, place in bound(settings).items() if not on_loopback(place[0])}
    if everybody(settings):
        if reached:
            words = "everybody who can reach it may ask, without a key"
            log.warning(words, addresses={name: host_and_port(place) for name, place in reached.items()})
        return
    tls = {"http": settings.http.tls, "graphql": settings.http.tls, "grpc": settings.grpc.tls}
    clear = {name: host_and_port(place) for name, place in reached.items() if tls[name] is None}
    if clear:
        log.warning("keys come in the clear, as there is no TLS: others may read them on their way", addresses=clear)


def host_and_port(address: tuple[str, int]) -> str:
    """Of a socket's address: `host:port`, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def wanted(settings: Settings) -> dict[str, tuple[str, int]]:
    """Where HTTP listens: `http`, and `graphql` where that has a server of its own."""
    alone = settings.graphql.bind if settings.graphql.enabled else None
    http = (settings.rest, settings.websocket, settings.gateway)
    out = {}
    if any(door.enabled for door in http) or (settings.graphql.enabled and alone is None):
        out["http"] = settings.http.bind
    if alone is not None:
        out["graphql"] = alone
    return out


def bound(settings: Settings) -> dict[str, tuple[str, int]]:
    """Where it listens, by the sections that say so: as `wanted`, and `grpc`."""
    found = wanted(settings)
    return {**found, "grpc": settings.grpc.bind} if settings.grpc.enabled else found


def on_loopback(host: str) -> bool:
    """Does this host, by name or address, lead nowhere but to this machine?"""
    if is_loopback(host):
        return True
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:  # it may be known in a moment, whoever's it is then
        return False
    return all(is_loopback(str(address[0])) for *_, address in found)
