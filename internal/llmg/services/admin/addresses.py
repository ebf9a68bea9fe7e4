"""Where a provider's secrets go: what is stored stays with the address for which it was given.

Who may set addresses must not learn, by having them sent to a server of their own, keys that somebody else has set.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

from llmg.core.addresses import server
from llmg.core.errors import invalid
from llmg.services.admin.names import Path, name_of, place
from llmg.services.admin.tree import Node, children, find
from llmg.services.admin.values import UpstreamChange

# Whoever shares a front with an upstream would get what goes there with another `host`.
_OURS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"})
# Where clouds tell a machine its own credentials, besides the link-local addresses.
_METADATA: Final = frozenset(
    {
        "fd00:ec2::254",
        "100.100.100.200",
        "192.0.0.192",
        "metadata",
        "metadata.goog",
        "metadata.google.internal",
    }
)
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


def check_addresses(upstreams: Mapping[str, UpstreamChange]) -> None:
    """Raises Failure for addresses that lead to this machine's own cloud, which trusts whoever asks from here, and for
    headers by which a request arrives elsewhere than its address says."""
    for provider, change in upstreams.items():
        for name in change.headers:
            if name.lower() in _OURS:
                param = place("upstreams", provider, "headers", name)
                raise invalid(f"invalid '{param}': this header is for the gateway itself to set", param)
        for field, address in (("base_url", change.base_url), ("address", change.address)):
            if address is not None and _is_private_to_this_machine(_host(address)):
                param = place("upstreams", provider, field)
                raise invalid(f"invalid '{param}': link-local addresses can be set in the configuration only", param)


def _host(address: str) -> str:
    try:
        return (urlsplit(address if "://" in address else f"//{address}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_private_to_this_machine(host: str) -> bool:
    if host in _METADATA:
        return True
    found = _ip(host)
    return found is not None and (found.is_link_local or str(found) in _METADATA)


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is; also as the C library reads it: `0xa9fea9fe`, `169.254.43518`."""
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeEncodeError):
            return None
    if isinstance(found, IPv6Address) and found in _NAT64:
        return IPv4Address(int(found) & 0xFFFFFFFF)
    return getattr(found, "ipv4_mapped", None) or found


def check_kept(before: Node, after: Node, path: Path, upstreams: Mapping[str, UpstreamChange]) -> None:
    """Raises Failure where a change of a level would have stored secrets sent to another server: its own that the
    change leaves out, or those of levels below that go by its address."""
    own = find(before, path).get("upstreams") or {}
    for provider in dict.fromkeys((*own, *upstreams)):
        now = _address(after, path, provider)
        if now is None or server(now) == server(_address(before, path, provider)):
            continue  # `None`: the one in the configuration, which is not theirs to choose
        change = upstreams.get(provider)  # None: nothing of its own is left
        for field in _kept(own.get(provider) or {}, change) if change is not None else ():
            param = place("upstreams", provider, field)
            words = f"invalid '{param}': the one that is stored stays with its address: give one for the new address"
            raise invalid(f'{words}, or "" for none' if field != "headers" else f"{words}, or remove it", param)
        for below in _dependent(find(after, path), path, provider):
            param = place("upstreams", provider)
            words = f"what '{name_of(below)}' has for '{provider}' would be sent to another address"
            raise invalid(f"invalid '{param}': {words}; give that level an address first, or take it away", param)


def _address(root: Node, path: Path, provider: str) -> str | None:
    """The one that holds at a level; None: the provider's own."""
    found = None
    for depth in range(1, len(path) + 1):
        found = _own_address(find(root, path[:depth]), provider) or found
    return found


def _own_address(node: Node, provider: str) -> str | None:
    held = (node.get("upstreams") or {}).get(provider) or {}
    return held.get("base_url") or held.get("address")


def _kept(held: Node, change: UpstreamChange) -> Iterator[str]:
    for field in ("api_key", "token"):
        if held.get(field) and getattr(change, field) is None:
            yield field
    told = {name.lower() for name in (*change.headers, *change.remove_headers)}
    if any(name.lower() not in told for name in held.get("headers") or {}):
        yield "headers"


def _dependent(node: Node, path: Path, provider: str) -> Iterator[Path]:
    """The levels below that have secrets for a provider, and none of them an address."""
    for below, child in children(node, path):
        if _own_address(child, provider) is None:
            held = (child.get("upstreams") or {}).get(provider) or {}
            if held.get("api_key") or held.get("token") or held.get("headers"):
                yield below
            yield from _dependent(child, below, provider)
