"""TLS by configuration: HTTP and gRPC, with clients that show certificates and with those that don't."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from boot.conftest import Serve
from llmg.boot import tls
from llmg.boot.settings import Settings, Tls
from llmg.gatewayapi.v1 import models_pb2
from llmg.gatewayapi.v1.models_pb2_grpc import ModelServiceStub
from support.gateway import ECHO, chat
from support.http import PATIENCE, Connection


class Certificates:
    """An issuer, the server's certificate, and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        self.issuer = trustme.CA()
        server = self.issuer.issue_cert("127.0.0.1", "localhost")
        self.client = self.issuer.issue_cert("someone@client.example")
        self.cert, self.key, self.ca = folder / "server.pem", folder / "server.key", folder / "ca.pem"
        self.cert.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
        server.private_key_pem.write_to_path(self.key)
        self.issuer.cert_pem.write_to_path(self.ca)

    def config(self, *, mutual: bool = False) -> dict[str, Any]:
        own = {"cert": str(self.cert), "key": str(self.key), **({"client_ca": str(self.ca)} if mutual else {})}
        return {**ECHO, "http": {"tls": own}, "grpc": {"tls": own}}

    def for_client(self, *, shown: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.issuer.configure_trust(context)
        if shown:
            self.client.configure_cert(context)
        return context

    def credentials(self, *, shown: bool) -> grpc.ChannelCredentials:
        chain = b"".join(blob.bytes() for blob in self.client.cert_chain_pems)
        own = {"private_key": self.client.private_key_pem.bytes(), "certificate_chain": chain} if shown else {}
        return grpc.ssl_channel_credentials(root_certificates=self.ca.read_bytes(), **own)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def ask(address: tuple[str, int], context: ssl.SSLContext) -> Any:
    """A chat's answer by HTTPS."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        try:
            return (await Connection(reader, writer).post("/v1/chat/completions", chat())).json()
        finally:
            writer.close()


async def models(address: str, credentials: grpc.ChannelCredentials) -> list[str]:
    """The models by gRPC."""
    async with grpc.aio.secure_channel(address, credentials) as channel:
        answer = await ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest(), timeout=PATIENCE)
    return [model.id for model in answer.models]


async def test_http_and_grpc_by_tls(serve: Serve, certificates: Certificates) -> None:
    gateway = await serve(certificates.config())
    assert gateway.entries[0]["address"].startswith("https://")
    answer = await ask(gateway.address, certificates.for_client(shown=False))
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert await models(gateway.grpc_address, certificates.credentials(shown=False)) == ["m"]
    with pytest.raises(ssl.SSLCertVerificationError):  # who does not trust the issuer
        await ask(gateway.address, ssl.create_default_context())


async def test_clients_must_show_a_certificate(serve: Serve, certificates: Certificates) -> None:
    gateway = await serve(certificates.config(mutual=True))
    answer = await ask(gateway.address, certificates.for_client(shown=True))
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert await models(gateway.grpc_address, certificates.credentials(shown=True)) == ["m"]
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        await ask(gateway.address, certificates.for_client(shown=False))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await models(gateway.grpc_address, certificates.credentials(shown=False))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_can_not_be_used_is_said_at_the_start(serve: Serve, certificates: Certificates) -> None:
    certificates.key.write_text("not a key")
    gateway = await serve(certificates.config(), ready=0)
    assert await gateway.ended() == 1
    assert any("server.key can't be used" in line for line in gateway.lines)
    assert not any("Traceback" in line for line in gateway.lines)


def broken(certificates: Certificates, folder: Path, case: str) -> Tls:
    """A configuration that has this fault."""
    odd = folder / "odd"
    odd.write_text("nothing of use")
    given: dict[str, Any] = {"cert": certificates.cert, "key": certificates.key}
    given.update({"missing": {"cert": folder / "none"}, "key": {"key": odd}, "cert": {"cert": odd}}.get(case, {}))
    if case == "ca":
        given["client_ca"] = odd
    if case == "other":
        certificates.issuer.issue_cert("other.example").private_key_pem.write_to_path(odd)
        given["key"] = odd
    return Tls(**given)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "can't be read: No such file"),
        ("key", "can't be used"),
        ("cert", "can't be used"),
        ("other", "key values mismatch"),
        ("ca", "holds no certificates"),
    ],
)
def test_each_fault_is_named(certificates: Certificates, tmp_path: Path, case: str, words: str) -> None:
    config = broken(certificates, tmp_path, case)
    settings = Settings()
    http = settings.http.model_copy(update={"tls": config})
    with pytest.raises(tls.TlsError, match=words):
        tls.check(settings.model_copy(update={"http": http}))
