"""Whom the gateway lets in, and who can reach it: without keys only this machine may, if nobody says otherwise."""

from __future__ import annotations

import socket

from llmg.boot.settings import Settings
from llmg.doors.http.guard import is_loopback


class Exposed(Exception):
    """Others could use the gateway without a key. The message says where, and what to do."""


def everybody(settings: Settings) -> bool:
    """May anybody ask, without a key? Where nothing is said of who may."""
    return not (settings.keys or settings.admin.keys or settings.tenants or settings.catalog)


def check_exposure(settings: Settings) -> None:
    """Raises Exposed when others can reach a gateway that lets everybody in, and nobody said that they may."""
    if settings.server.insecure or not everybody(settings):
        return
    for name, (host, port) in bound(settings).items():
        if not on_loopback(host):
            raise Exposed(
                f"{name}.server_addr is {f'[{host}]' if ':' in host else host}:{port}, where others can reach it, and "
                "there are no keys, so everybody could ask: either set keys (`keys` or `tenants`), or say that "
                "everybody may with --insecure (server.insecure: true)"
            )


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
    except OSError:  # which whoever listens there will be told
        return True
    return all(is_loopback(str(address[0])) for *_, address in found)
