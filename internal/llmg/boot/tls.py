"""TLS by configuration: read and checked when the gateway starts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from llmg.boot.settings import Settings, Tls
from llmg.boot.settings.problems import Keys


class TlsError(Exception):
    """A certificate or key that can't be used; says which file. `keys`: the setting's place."""

    def __init__(self, message: str, keys: Keys = ()) -> None:
        super().__init__(message)
        self.keys = keys


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
        _trust(made, tls.client_ca)
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
            raise TlsError(f"{name}.tls: {error}", (name, "tls")) from None
    if settings.redis is not None and settings.redis.ca is not None:
        try:
            _trust(ssl.create_default_context(), settings.redis.ca)
        except TlsError as error:
            raise TlsError(f"redis.ca: {error}", ("redis", "ca")) from None


def _trust(context: ssl.SSLContext, issuers: Path) -> None:
    try:
        context.load_verify_locations(cadata=_read(issuers).decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise TlsError(f"{issuers} holds no certificates in PEM") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsError(f"{file} can't be read: {error.strerror}") from None


def _no_passphrase(key: Path) -> bytes:
    raise TlsError(f"the key {key} has a passphrase: take it off")


def _said(reason: str) -> str:
    return reason.replace("_", " ").lower()
