"""The composition root: what is made of what. Only plain singletons; async lifetimes are `serve`'s.

(An async resource in a container turns all that depends on it into futures, and injection per call costs more than
the call: both stay off the request path.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from random import Random as Dice
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from dependency_injector import containers, providers
from msgspec import Struct
from starlette.types import ASGIApp

from llmg.boot import build, tls
from llmg.boot.administration import make_admin, make_store
from llmg.boot.checks import Checks
from llmg.boot.current import Current
from llmg.boot.exposure import on_loopback, sees_details
from llmg.boot.limits import make_limiter, make_redis, make_shared_limiter
from llmg.boot.observe import LogObserver
from llmg.boot.resilience import make_prober
from llmg.boot.scopes import LevelScope
from llmg.boot.settings import Settings
from llmg.boot.system import RandomIds, SystemClock
from llmg.boot.version import version
from llmg.core.context import Principal
from llmg.core.way import HEADERS
from llmg.doors.http.guard import Guard
from llmg.doors.http.pages import graphiql_assets, make_docs
from llmg.doors.http.refusing import ByPath
from llmg.doors.rest.app import Routes, make_door, openai_routes
from llmg.doors.rest.explain import ExplainRoute
from llmg.doors.rest.inference import ChatCompletions, Embeddings
from llmg.ports import CatalogStore, Clock, Document, Ids, Launcher, Limiter, Provider
from llmg.providers.http import Transport
from llmg.routing.limits.limited import Limited
from llmg.routing.probes import Prober
from llmg.routing.router import Router
from llmg.services import models as service
from llmg.services.admin import Admin, Following
from llmg.services.admission import Admission, Authenticator
from llmg.services.explain import Explain

if TYPE_CHECKING:
    from llmg.stores.redis import Redis

EXPOSED: Final = ("x-request-id", "retry-after", *HEADERS)  # headers that pages may read


class Draining:
    """Has the process been told to stop?"""

    def __init__(self) -> None:
        self.on = False

    def __call__(self) -> bool:
        """Yes or no."""
        return self.on


def _needs(settings: Settings, transport: Transport, launcher: Launcher | None) -> build.Needs:
    return build.Needs(settings, transport, launcher)


def _current(needs: build.Needs, clock: Clock, checks: Checks) -> Current:
    needs.live.changed = checks.changed
    return Current(needs, clock)


def _checks(needs: build.Needs, prober: Prober) -> Checks:
    return Checks(needs.live, needs.transport, prober)


def _redis(settings: Settings) -> Redis | None:
    return None if settings.redis is None else make_redis(settings.redis)


def _limiter(settings: Settings, redis: Redis | None, clock: Clock) -> Limiter:
    if redis is None or settings.redis is None:
        return make_limiter(clock)
    return make_shared_limiter(clock, redis, settings.redis)


def _pipeline(current: Current, limiter: Limiter, clock: Clock) -> Provider:
    """What every request goes through, from the outside in."""
    return Limited(Router(current, clock), limiter)


def _scope(current: Current) -> Callable[[Principal], LevelScope]:
    return lambda principal: principal.scope or current.scope


def _explain(current: Current, limiter: Limiter, clock: Clock) -> Explain:
    def details(principal: Principal) -> bool:
        return sees_details(current.settings, principal)

    return Explain(_scope(current), lambda name: current.catalog.scopes.get(name), limiter, clock, details)


def _model_service(current: Current) -> service.Models:
    scope = _scope(current)
    return service.Models(
        lambda principal: [build.describe(group) for group in scope(principal).declared()],
        lambda name, principal: build.describe(scope(principal).find(name)),
    )


def _authenticator(current: Current, clock: Clock) -> Authenticator:
    return Authenticator(lambda: current.catalog, clock)


def _store(current: Current, redis: Redis | None) -> CatalogStore:
    return make_store(lambda: current.settings, redis)


def _administering(
    current: Current, store: CatalogStore, clock: Clock, ids: Ids, held: Document | None
) -> tuple[Admin, Following]:
    return make_admin(
        store=store,
        settings=lambda: current.settings,
        apply=current.apply_tenants,
        clock=clock,
        ids=ids,
        held=held,
    )


class Wired(Struct, frozen=True):
    """What all doors are before."""

    settings: Settings
    current: Current
    pipeline: Provider
    admission: Admission
    models: service.Models
    explain: Explain
    admin: Admin
    draining: Draining


class Front(Struct, frozen=True):
    """What an HTTP server serves, and in which words it says no itself."""

    app: ASGIApp
    words: ByPath


def _http(wired: Wired) -> Front:
    """What the HTTP server serves."""
    settings = wired.settings
    routes = []
    if settings.rest.enabled:
        routes.append(_rest(wired))
    if settings.websocket.enabled:
        routes.append(_websocket(wired))
    if settings.graphql.enabled and settings.graphql.server_addr is None:
        routes.append(_graphql(wired))
    if settings.gateway.enabled:
        routes.append(_gateway(wired))
    return _guarded(wired, routes, settings.http.bind[0])


def _graphql_alone(wired: Wired) -> Front:
    """What GraphQL's own server serves."""
    bind = wired.settings.graphql.bind
    assert bind is not None
    return _guarded(wired, [_graphql(wired)], bind[0])


def _guarded(wired: Wired, routes: Sequence[Routes], host: str) -> Front:
    """A door of these, behind what looks at where requests come from."""
    http = wired.settings.http
    door = make_door(*routes, version=version, draining=wired.draining)
    app: ASGIApp = door
    if http.origins:
        from starlette.middleware.cors import CORSMiddleware

        app = CORSMiddleware(
            app,
            allow_origins=http.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
            max_age=3600,
        )
    hosts = http.hosts if http.hosts or on_loopback(host) else None
    app = Guard(
        app,
        hosts=hosts,
        origins=http.origins,
        off=lambda: wired.current.catalog.anonymous is None,
        words=door.words,
    )
    if http.forwarded_allow_ips:
        from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

        proxied: Any = ProxyHeadersMiddleware(cast(Any, app), trusted_hosts=list(http.forwarded_allow_ips))
        app = proxied
    return Front(app, door.words)


def _rest(wired: Wired) -> Routes:
    http = wired.settings.http
    return openai_routes(
        chat=ChatCompletions(wired.pipeline, wired.admission, http.max_body, http.heartbeat),
        embeddings=Embeddings(wired.pipeline, wired.admission, http.max_body, http.heartbeat),
        models=wired.models,
        admission=wired.admission,
        explain=ExplainRoute(wired.explain, wired.admission, http.max_body),
    )


def _graphql(wired: Wired) -> Routes:
    from llmg.doors.graphql.app import make_graphql  # brings strawberry along
    from llmg.doors.graphql.exchange import words

    http, graphql = wired.settings.http, wired.settings.graphql
    app = make_graphql(
        pipeline=wired.pipeline,
        models=wired.models,
        admission=wired.admission,
        explain=wired.explain,
        admin=wired.admin,
        introspection=graphql.introspection,
        max_depth=graphql.max_depth,
        max_aliases=graphql.max_aliases,
        max_tokens=graphql.max_tokens,
        max_body=http.max_body,
        heartbeat=http.heartbeat,
        origins=http.origins,
        graphiql=graphql.graphiql,
    )
    pages = graphiql_assets() if graphql.graphiql else {}
    return Routes({"/graphql": app, **pages}, sockets={"/graphql": app}, words={"/graphql": words})


def _websocket(wired: Wired) -> Routes:
    from llmg.doors.websocket.app import make_websocket

    websocket = wired.settings.websocket
    app = make_websocket(
        pipeline=wired.pipeline,
        admission=wired.admission,
        explain=wired.explain,
        max_message=websocket.max_message,
        max_requests=websocket.max_requests,
        init_timeout=websocket.init_timeout,
        origins=wired.settings.http.origins,
    )
    return Routes({"/v1/ws": app}, sockets={"/v1/ws": app})


def _gateway(wired: Wired) -> Routes:
    from llmg.doors.gateway.app import make_gateway, words  # brings protobuf along
    from llmg.doors.gateway.inprocess import InProcess
    from llmg.doors.grpc.admin import refusals
    from llmg.doors.grpc.served import DESCRIPTORS, handlers
    from llmg.doors.grpc.services import Inference
    from llmg.wire.transcoding.bindings import bindings, fixed_paths

    inference = Inference(wired.pipeline, wired.admission, door="gateway", explain=wired.explain)
    table = bindings(DESCRIPTORS)
    app = make_gateway(
        upstream=InProcess(handlers(inference, wired.models, wired.admin), wired.admission),
        bindings=table,
        max_body=wired.settings.http.max_body,
        heartbeat=wired.settings.http.heartbeat,
        refused=refusals(inference, wired.admin),
    )
    exact = dict.fromkeys(fixed_paths(table), app) | (_docs() if wired.settings.gateway.docs else {})
    return Routes(exact, {"/api/{path:rest}": app}, words={"/api": words})


def _docs() -> dict[str, ASGIApp]:
    from llmg.wire.openapi.own import own

    return make_docs(msgspec.json.encode(own()))


def _grpc(wired: Wired) -> Any:
    from llmg.doors.grpc.server import GrpcServer, Limits  # brings grpc along
    from llmg.doors.grpc.services import Inference

    grpc = wired.settings.grpc
    return GrpcServer(
        Inference(wired.pipeline, wired.admission, explain=wired.explain),
        wired.models,
        admin=wired.admin,
        limits=Limits(
            message=grpc.max_message,
            calls=grpc.max_calls,
            message_timeout=grpc.message_timeout,
            streams=grpc.max_streams,
            keepalive=grpc.keepalive,
            keepalive_timeout=grpc.keepalive_timeout,
            ping_interval=grpc.min_ping_interval,
            connection_age=grpc.max_connection_age,
        ),
        reflection=grpc.reflection,
        credentials=None if grpc.tls is None else tls.credentials(grpc.tls),
        reuse_port=wired.settings.server.workers > 1,
    )


class Container(containers.DeclarativeContainer):
    """Everything of one gateway process. `settings` and `launcher` are given to it, and `held`: what the catalog holds,
    where its tenants are in the settings already."""

    settings = providers.Dependency(instance_of=Settings)
    launcher: providers.Dependency[Launcher | None] = providers.Dependency()
    held: providers.Dependency[Document | None] = providers.Dependency(default=providers.Object(None))

    clock = providers.Singleton(SystemClock)
    ids = providers.Singleton(RandomIds)
    observer = providers.Singleton(LogObserver)
    draining = providers.Singleton(Draining)
    transport = providers.Singleton(Transport)
    chance = providers.Singleton(Dice)

    needs = providers.Singleton(_needs, settings, transport, launcher)
    prober = providers.Singleton(make_prober, chance)
    checks = providers.Singleton(_checks, needs, prober)
    current = providers.Singleton(_current, needs, clock, checks)
    redis: providers.Singleton[Redis | None] = providers.Singleton(_redis, settings)
    limiter = providers.Singleton(_limiter, settings, redis, clock)
    pipeline = providers.Singleton(_pipeline, current, limiter, clock)
    model_service = providers.Singleton(_model_service, current)
    explain = providers.Singleton(_explain, current, limiter, clock)
    authenticator = providers.Singleton(_authenticator, current, clock)
    admission = providers.Singleton(Admission, authenticator, clock, ids, observer)
    store: providers.Singleton[CatalogStore] = providers.Singleton(_store, current, redis)
    administering = providers.Singleton(_administering, current, store, clock, ids, held)
    admin = providers.Callable(itemgetter(0), administering)
    following = providers.Callable(itemgetter(1), administering)
    wired = providers.Singleton(Wired, settings, current, pipeline, admission, model_service, explain, admin, draining)
    http = providers.Singleton(_http, wired)
    graphql = providers.Singleton(_graphql_alone, wired)
    grpc = providers.Singleton(_grpc, wired)
