"""Values that are written as text: durations, sizes, addresses, URLs. Pure functions; they raise `Expected`."""

import ipaddress
import math
import re
from fractions import Fraction
from typing import TypeGuard
from urllib.parse import urlsplit

from llmg.boot.settings.problems import Expected

DURATION_PATTERN = r"^\s*(\d+(\.\d+)?\s*(ms|s|m|h)\s*)+$|^\s*\d+(\.\d+)?\s*$"
SIZE_PATTERN = r"^\s*\d+(\.\d+)?\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)?\s*$"

_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
_BYTES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_A_DURATION = "a duration such as 500ms, 2s, 1m30s, or a number of seconds"
_A_SIZE = "a size such as 64KiB, 50MiB, or a number of bytes"


def duration(value: object) -> float:
    """Seconds, from a number of seconds or from text such as `500ms`, `2s`, `1m30s`."""
    if isinstance(value, str) and re.match(DURATION_PATTERN, value):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", value)
        return float(sum(Fraction(number) * _SECONDS[unit or "s"] for number, unit in parts))
    if _is_number(value) and value >= 0:
        return float(value)
    raise Expected(_A_DURATION, show=True)


def spoken_duration(seconds: float) -> str:
    """As `duration` reads it, with the fewest units: `500ms`, `90s`, `2m`."""
    unit = next((unit for unit in ("h", "m", "s") if Fraction(seconds) % _SECONDS[unit] == 0), "ms")
    return f"{seconds / float(_SECONDS[unit]):g}{unit}"


def spoken_size(size: int) -> str:
    """As `size` reads it: `64KiB`."""
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if size % _BYTES[unit] == 0)
    return f"{size // _BYTES[unit]}{unit}"


def is_bare(value: object) -> bool:
    """Is it a number without a unit?"""
    return _is_number(value) or (isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*", value) is not None)


def size(value: object) -> int:
    """Bytes, from a number or from text such as `64KiB` (1024s) or `64KB` (1000s)."""
    if isinstance(value, str) and re.match(SIZE_PATTERN, value):
        number, unit = re.findall(r"([\d.]+)\s*([A-Za-z]*)", value)[0]
        amount = Fraction(number) * _BYTES[unit]
    elif _is_number(value) and value >= 0:
        amount = Fraction(value)
    else:
        raise Expected(_A_SIZE, show=True)
    if amount.denominator != 1:
        raise Expected("a whole number of bytes", show=True)
    return int(amount)


def address(value: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets, and comes back without them."""
    host, colon, port = value.rpartition(":")
    if not colon:
        raise Expected("host:port, such as 127.0.0.1:8080", show=True)
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise Expected("host:port with a port from 0 to 65535", show=True)
    return _host(host), int(port)


def http_url(value: str) -> str:
    """The URL without its last slash. Only http and https; no query, no fragment, no user or password."""
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        raise Expected("an http or https URL") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or re.search(r"[\s\x00-\x1f]", value):
        raise Expected("an http or https URL, such as https://api.openai.com/v1")
    if not value.isascii():
        raise Expected("a URL in ASCII (an international host name in its xn-- form, a path percent-encoded)")
    if "?" in value or "#" in value:
        raise Expected("a URL without query and fragment")
    if "@" in url.netloc:
        raise Expected("a URL without user and password (a key belongs into api_key or headers)")
    return value.rstrip("/")


def origin(value: str) -> str:
    """A web page's origin, as browsers write it: scheme, host, and a port that isn't the scheme's own."""
    try:
        url = urlsplit(value)
        valid = url.scheme in ("http", "https") and url.hostname and url.port != 0 and "@" not in url.netloc
    except ValueError:
        valid = False
    if not valid or value.rstrip("/") != f"{url.scheme}://{url.netloc}" or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise Expected("an origin such as https://app.example.com", show=True)
    return value.rstrip("/").lower()


def host_name(value: str) -> str:
    """A host's name or address, without a port."""
    try:
        return _host(value).lower()
    except Expected:
        raise Expected("a host's name without a port, such as llmg.internal", show=True) from None


def ip_range(value: str) -> str:
    """An address, or a network such as 10.0.0.0/8."""
    try:
        ipaddress.ip_network(value)
    except ValueError:
        raise Expected("an IP address, or a network such as 10.0.0.0/8", show=True) from None
    return value


def _host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise Expected("an IPv6 address in the brackets, such as [::1]:8080", show=True) from None
    if ":" in host:
        raise Expected("an IPv6 host in brackets, such as [::1]:8080", show=True)
    if not host:
        raise Expected("host:port; for all interfaces write 0.0.0.0 or [::] as the host", show=True)
    if not _HOST.match(host):
        raise Expected("host:port with a host name or an IP address", show=True)
    return host


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
