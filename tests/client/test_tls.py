"""The client by TLS, against gRPC's own."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import trustme

from llmg.client import Client, UnavailableError
from llmg.doors.grpc.server import GrpcServer, Limits
from llmg.doors.grpc.services import Inference
from llmg.testing.scripted import Scripted, saying
from support.doors import admission, grpc_door, some_models
from support.http import PATIENCE


class Certificates:
    """An issuer, the server's certificate, and a client's."""

    def __init__(self) -> None:
        self.issuer = trustme.CA()
        self.server = self.issuer.issue_cert("127.0.0.1", "localhost")
        self.client = self.issuer.issue_cert("someone@client.example")

    def trusted(self, *, shown: bool = False) -> ssl.SSLContext:
        """What a client needs; `shown`: with a certificate of its own."""
        context = ssl.create_default_context()
        self.issuer.configure_trust(context)
        if shown:
            self.client.configure_cert(context)
        return context

    @asynccontextmanager
    async def door(self, *, mutual: bool = False) -> AsyncIterator[str]:
        """The address of a gRPC door; `mutual`: clients must show a certificate."""
        chain = b"".join(blob.bytes() for blob in self.server.cert_chain_pems)
        issuer = self.issuer.cert_pem.bytes() if mutual else None
        server = GrpcServer(
            Inference(Scripted(saying("Hello")), admission()),
            some_models(),
            limits=Limits(),
            reflection=False,
            credentials=grpc.ssl_server_credentials(
                [(self.server.private_key_pem.bytes(), chain)], issuer, require_client_auth=mutual
            ),
        )
        port = await server.start("127.0.0.1:0")
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.drain(0)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_context_of_ones_own(certificates: Certificates, mutual: bool) -> None:
    async with (
        certificates.door(mutual=mutual) as address,
        Client(address, tls=certificates.trusted(shown=mutual), timeout=PATIENCE) as client,
    ):
        assert (await client.chat("m", "Hello")).text == "Hello"
        async with client.stream("m", "Hello") as stream:
            assert [piece async for piece in stream.text] == ["Hello"]


async def test_what_the_system_trusts(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    with certificates.issuer.cert_pem.tempfile() as file:
        monkeypatch.setenv("SSL_CERT_FILE", file)
        async with certificates.door() as address, Client(address, tls=True, timeout=PATIENCE) as client:
            assert (await client.chat("m", "Hello")).text == "Hello"


async def test_an_issuer_that_is_not_trusted(certificates: Certificates) -> None:
    async with certificates.door() as address, Client(address, tls=True, timeout=PATIENCE) as client:
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            await client.chat("m", "Hello")


async def test_a_certificate_that_is_not_shown(certificates: Certificates) -> None:
    async with (
        certificates.door(mutual=True) as address,
        Client(address, tls=certificates.trusted(), timeout=PATIENCE) as client,
    ):
        with pytest.raises(UnavailableError):
            await client.chat("m", "Hello")


async def test_plain_text_where_tls_is_spoken(certificates: Certificates) -> None:
    async with certificates.door() as address, Client(address, timeout=PATIENCE) as client:
        with pytest.raises(UnavailableError):
            await client.chat("m", "Hello")


async def test_tls_where_plain_text_is_spoken(certificates: Certificates) -> None:
    async with (
        grpc_door(Scripted()) as door,
        Client(door.address, tls=certificates.trusted(), timeout=PATIENCE) as client,
    ):
        with pytest.raises(UnavailableError):
            await client.chat("m", "Hello")
