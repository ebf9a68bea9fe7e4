"""Addresses of other servers, as text."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}


def server(address: str | None) -> str | None:
    """Which server that is, of a URL or `host:port`: scheme, host and port, however they are written. None: none."""
    if address is None or "://" not in address:
        return None if address is None else address.lower()
    try:
        url = urlsplit(address)
        port = url.port or _PORTS.get(url.scheme)
    except ValueError:  # no URL: it is refused elsewhere, and no other server's
        return address
    return address if url.hostname is None else f"{url.scheme}://{url.hostname}:{port}"
