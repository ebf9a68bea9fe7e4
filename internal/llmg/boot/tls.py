"""TLS by configuration: read and checked when the gateway starts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from llmg.boot.settings import Settings, Tls


class TlsError(Exception):
    """A certificate or key that can't be used; says which file."""


def context(tls: Tls, protocols: list[str]) -> ssl.SSLContext:
    """For a server that speaks `protocols` (ALPN). TLS 1.2 and later. Raises TlsError."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(protocols)
    for file in (tls.cert, tls.key):
        _read(file)
    try:
        made.load_cert_chain(tls.cert, tls.key, password=lambda: _no_passphrase(tls.key))
    except ssl.SSLError as error:
        reason = error.reason or "not in PEM"
        raise TlsError(f"the certificate {tls.cert} and the key {tls.key} can't be used: {_said(reason)}") from None
    if tls.client_ca is not None:
        try:
            made.load_verify_locations(cadata=_read(tls.client_ca).decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError):
            raise TlsError(f"{tls.client_ca} holds no certificates in PEM") from None
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def credentials(tls: Tls) -> Any:
    """The same for gRPC: `grpc.ServerCredentials`. Raises TlsError."""
    import grpc

    context(tls, ["h2"])  # says what is wrong, where gRPC would only not start
    issuers = None if tls.client_ca is None else _read(tls.client_ca)
    pair = (_read(tls.key), _read(tls.cert))
    return grpc.ssl_server_credentials([pair], issuers, require_client_auth=issuers is not None)


def check(settings: Settings) -> None:
    """Raises TlsError for what `serve` could not use."""
    for name, tls in (("http", settings.http.tls), ("grpc", settings.grpc.tls)):
        if tls is None:
            continue
        try:
            context(tls, [])
        except TlsError as error:
            raise TlsError(f"{name}.tls: {error}") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsError(f"{file} can't be read: {error.strerror}") from None


def _no_passphrase(key: Path) -> bytes:
    raise TlsError(f"the key {key} has a passphrase: take it off")


def _said(reason: str) -> str:
    return reason.replace("_", " ").lower()
