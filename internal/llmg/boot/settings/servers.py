"""The servers: HTTP, gRPC, what they serve, the processes and their log."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llmg.boot.settings import units
from llmg.boot.settings.types import (
    LOWER,
    Bytes,
    Count,
    HostName,
    IpRange,
    PositiveCount,
    Section,
    ServerAddress,
    Size,
    UpTo1h,
    UpTo4h,
    UpTo10m,
    WebOrigin,
    ZeroTo1h,
    ZeroTo4h,
    ZeroTo7d,
)


class Tls(Section):
    """A server's TLS, with files in PEM. Paths are from the folder that llmg is started in."""

    cert: Path = Field(description="The server's certificate, and after it those of its issuers.")
    key: Path = Field(description="The certificate's private key, without a passphrase.")
    client_ca: Path | None = Field(
        default=None, description="Who issues clients' certificates. With it, clients must show one (mTLS)."
    )


class Http(Section):
    """The HTTP server: REST and what else speaks HTTP."""

    server_addr: ServerAddress = Field(
        default="127.0.0.1:8080",
        description="Where to listen, host:port. Port 0 takes a free one; 0.0.0.0 or [::] means all interfaces.",
    )
    max_body: Size = Field(
        default=32 * 2**20, description="The largest request body, in bytes. A larger one is refused: 413."
    )
    max_headers: Size = Field(
        default=64 * 2**10, description="The most a request's line and headers may take together, in bytes."
    )
    header_timeout: UpTo10m = Field(default=10.0, description="The time a client may take to send its headers.")
    body_timeout: UpTo1h = Field(default=60.0, description="The time a client may take to send its body.")
    write_timeout: UpTo1h = Field(
        default=120.0, description="How long a client may leave unread what there is for it, before it is let go."
    )
    keep_alive: ZeroTo4h = Field(
        default=75.0, description="How long an idle connection is kept open for the next request."
    )
    heartbeat: UpTo1h = Field(
        default=10.0,
        description="How long a stream's status line waits for the first content. After that the status goes out, "
        "and a comment is sent at this interval while nothing else is.",
    )
    backlog: PositiveCount = Field(
        default=2048, description="How many connections may wait to be accepted (the kernel may allow fewer)."
    )
    access_log: bool = Field(default=False, description="Write a log line for each request.")
    tls: Tls | None = Field(default=None, description="HTTPS instead of HTTP.")
    hosts: tuple[HostName, ...] = Field(
        default=(),
        description="Names of this server, besides those of loopback. Without keys, and where it listens on loopback "
        "or has such names, it answers to no other: no web page can reach it by a name of its own (DNS rebinding).",
    )
    origins: tuple[WebOrigin, ...] = Field(
        default=(),
        description="Origins of other servers' web pages that may use this one, such as https://app.example.com.",
    )
    forwarded_allow_ips: tuple[IpRange, ...] = Field(
        default=(),
        description="Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.",
    )

    @property
    def bind(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port to listen on."""
        return units.address(self.server_addr)


class Grpc(Section):
    """The gRPC server."""

    enabled: bool = Field(default=True, description="Whether gRPC is served at all.")
    server_addr: ServerAddress = Field(
        default="127.0.0.1:8081",
        description="Where to listen, host:port. Port 0 takes a free one; 0.0.0.0 or [::] means all interfaces.",
    )
    max_message: Annotated[int, Bytes(most=2**31 - 1)] = Field(
        default=32 * 2**20,
        description="The largest request, in bytes. A larger one is refused: RESOURCE_EXHAUSTED.",
    )
    reflection: bool = Field(
        default=True, description="Whether clients may ask which services there are, as grpcurl and buf curl do."
    )
    max_calls: Count = Field(
        default=0,
        description="Calls at the same time, of all clients with a key; health and reflection don't count. 0: any "
        "number. One more: RESOURCE_EXHAUSTED.",
    )
    message_timeout: UpTo1h = Field(default=60.0, description="The time a client may take to send its request.")
    max_streams: PositiveCount = Field(
        default=1000, le=2**31 - 1, description="Calls at the same time over one connection; more wait at the client."
    )
    keepalive: UpTo4h = Field(
        default=60.0, description="After so much silence a client is asked whether it is still there."
    )
    keepalive_timeout: UpTo10m = Field(default=20.0, description="The time it has to say so.")
    min_ping_interval: ZeroTo1h = Field(
        default=10.0, description="How often a client may ask us. One that asks more often is let go."
    )
    max_connection_age: ZeroTo7d = Field(
        default=0.0,
        description="After so long a client is told to connect anew, so that load spreads over new servers. 0: never.",
    )
    tls: Tls | None = Field(default=None, description="TLS instead of plain text.")

    @property
    def bind(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port to listen on."""
        return units.address(self.server_addr)


class Rest(Section):
    """REST in OpenAI's shape, at /v1 of the HTTP server."""

    enabled: bool = Field(default=True, description="Whether it is served at all.")


class WebSocket(Section):
    """Token streams over WebSocket, at /v1/ws of the HTTP server."""

    enabled: bool = Field(default=True, description="Whether it is served at all.")
    max_message: Size = Field(
        default=32 * 2**20, description="The largest message of a client, in bytes. At a larger one the socket closes."
    )
    max_requests: PositiveCount = Field(default=100, description="Requests at the same time over one socket.")
    init_timeout: UpTo10m = Field(default=10.0, description="The time that a client has to show its key.")


class Gateway(Section):
    """The gRPC services as REST in JSON, at /api/v1 of the HTTP server."""

    enabled: bool = Field(default=True, description="Whether it is served at all.")
    docs: bool = Field(default=True, description="Whether it describes itself: /openapi.json, and a page at /docs.")


class GraphQL(Section):
    """GraphQL, at /graphql of the HTTP server, or of one of its own."""

    enabled: bool = Field(default=True, description="Whether GraphQL is served at all.")
    server_addr: ServerAddress | None = Field(
        default=None, description="Where to listen, host:port, instead of at the HTTP server's."
    )
    introspection: bool = Field(default=True, description="Whether clients may ask for the schema.")
    graphiql: bool = Field(default=True, description="Whether browsers that open /graphql get GraphiQL.")
    max_depth: PositiveCount = Field(default=12, description="How deep an operation may be nested.")
    max_aliases: PositiveCount = Field(default=15, description="How many aliases it may have.")
    max_tokens: PositiveCount = Field(default=4000, description="How many tokens of GraphQL's language it may have.")

    @property
    def bind(self) -> tuple[str, int] | None:
        """Host (IPv6 without brackets) and port of its own to listen on."""
        return None if self.server_addr is None else units.address(self.server_addr)


class Log(Section):
    """What is logged, and how."""

    level: Annotated[Literal["debug", "info", "warning", "error"], LOWER] = Field(
        default="info", description="The least important level that is written."
    )
    format: Annotated[Literal["auto", "console", "json"], LOWER] = Field(
        default="auto", description="auto: console on a terminal, else json."
    )


class Server(Section):
    """The gateway's processes."""

    insecure: bool = Field(
        default=False,
        description="Whether everybody may ask who can reach the gateway, also from other machines: whether it may "
        "listen elsewhere than on loopback without any keys.",
    )
    explain: Literal["admin", "everybody"] = Field(
        default="admin",
        description="Who is told, in explanations of routes, how targets do and what is noted of them: latencies, "
        "requests in flight, circuits, prices and labels. Without keys everybody is.",
    )
    workers: PositiveCount = Field(
        default=1, description="Gateway processes that share the port. Local models run once, whatever this is."
    )
    grace: ZeroTo4h = Field(
        default=30.0,
        description="The time that requests in flight are given to finish when the gateway is told to stop.",
    )
