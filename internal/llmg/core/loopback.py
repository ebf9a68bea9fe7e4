"""Which hosts are this machine itself."""

from ipaddress import ip_address


def is_loopback(name: str) -> bool:
    """Is this host, by name or address, the machine itself?"""
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
