"""Which server an address leads to."""

from __future__ import annotations

import pytest

from llmg.core.addresses import server


@pytest.mark.parametrize(
    "same",
    [
        ("https://api.example/v1", "https://API.example:443/v2", "HTTPS://api.example"),
        ("http://a/v1", "http://A:80"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("one:1", "ONE:1"),
    ],
)
def test_a_server_is_the_same_however_its_address_is_written(same: tuple[str, ...]) -> None:
    assert len({server(address) for address in same}) == 1


def test_servers_differ_by_scheme_host_and_port() -> None:
    others = ["http://a", "https://a", "http://a:8080", "http://b", "a:80", "a:81", "http://a:x", "http://a.evil", None]
    others += ["dns:///a:80", "dns:///b:80", "unix:///a"]
    assert len({server(address) for address in others}) == len(others)
