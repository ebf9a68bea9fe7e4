"""The least that a GraphQL door can cost: strawberry's own ASGI application, a payload for each read of the upstream.

With strawberry's caches: a document is parsed and validated once, as in any program that cares.

graphql_relay.py PORT UPSTREAM_PORT
"""

import sys
from collections.abc import AsyncGenerator
from typing import Annotated, Any, NewType

import strawberry
from bare import Application, Upstream, serve
from strawberry.asgi import GraphQL
from strawberry.extensions import ParserCache, ValidationCache
from strawberry.schema.config import StrawberryConfig
from strawberry.subscriptions import GRAPHQL_SSE_PROTOCOL, GRAPHQL_TRANSPORT_WS_PROTOCOL

ChatInput = NewType("ChatInput", dict[str, Any])


@strawberry.type
class Started:
    id: strawberry.ID
    model: str


@strawberry.type
class Opened:
    choice: int
    part: int
    kind: str


@strawberry.type
class Delta:
    choice: int
    part: int
    text: str | None


@strawberry.type
class Closed:
    choice: int
    part: int


@strawberry.type
class Finished:
    choice: int
    reason: str


Event = Started | Opened | Delta | Closed | Finished


@strawberry.type
class Payload:
    events: list[Annotated[Event, strawberry.union("ChatEvent")]]


@strawberry.type
class Query:
    ok: bool = True


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def chat_completion(self, input: ChatInput) -> AsyncGenerator[Payload, None]:
        text = input["messages"][0]["parts"][0]["text"]["text"]
        async for read in upstream.reads(text, input.get("user")):
            events: list[Event] = []
            if read.first:
                events += [Started(id=strawberry.ID("1"), model="mock"), Opened(choice=0, part=0, kind="TEXT")]
            events += [Delta(choice=0, part=0, text=word) for word in read.words]
            if read.last:
                events += [Closed(choice=0, part=0), Finished(choice=0, reason="STOP")]
            yield Payload(events=events)


if __name__ == "__main__":
    upstream = Upstream(int(sys.argv[2]))
    scalars: dict[object, Any] = {ChatInput: strawberry.scalar(name="ChatInput")}
    config = StrawberryConfig(scalar_map=scalars)
    protocols = (GRAPHQL_SSE_PROTOCOL, GRAPHQL_TRANSPORT_WS_PROTOCOL)
    caches = [ParserCache, ValidationCache]
    schema = strawberry.Schema(Query, subscription=Subscription, config=config, extensions=caches)
    application: Any = GraphQL(schema, graphql_ide=None, subscription_protocols=protocols)
    serve(Application(upstream, application), int(sys.argv[1]))
