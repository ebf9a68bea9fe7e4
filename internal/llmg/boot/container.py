"""The composition root: what is made of what. Only plain singletons; async lifetimes are `serve`'s.

(An async resource in a container turns all that depends on it into futures, and injection per call costs more than
the call: both stay off the request path.)
"""

from __future__ import annotations

from typing import Any, Final

from dependency_injector import containers, providers
from starlette.types import ASGIApp

from llmg.boot import build
from llmg.boot.observe import LogObserver
from llmg.boot.settings import Settings
from llmg.boot.system import RandomIds, SystemClock
from llmg.boot.version import version
from llmg.doors.rest.app import Door, make_door
from llmg.doors.rest.inference import ChatCompletions, Embeddings
from llmg.ports import Clock, Launcher, Provider
from llmg.providers.http import Transport
from llmg.routing.router import Models, Router
from llmg.services import models as service
from llmg.services.admission import Admission, Keys

HTTP_TRANSPORTS: Final = ("application/json", "text/event-stream", "multipart/mixed")


class Draining:
    """Has the process been told to stop?"""

    def __init__(self) -> None:
        self.on = False

    def __call__(self) -> bool:
        """Yes or no."""
        return self.on


def _needs(settings: Settings, transport: Transport, launcher: Launcher | None) -> build.Needs:
    return build.Needs(settings, transport, launcher)


def _models(needs: build.Needs, clock: Clock) -> Models:
    return build.make_models(needs, int(clock.time()))


def _model_service(models: Models) -> service.Models:
    return service.Models(
        lambda: [build.describe(group) for group in models.declared()], lambda name: build.describe(models.find(name))
    )


def _keys(settings: Settings) -> Keys:
    return Keys({name: key.get_secret_value() for name, key in settings.keys.items()})


def _rest(
    settings: Settings, pipeline: Provider, admission: Admission, models: service.Models, draining: Draining
) -> Door:
    http = settings.http
    chat = ChatCompletions(pipeline, admission, http.max_body, http.heartbeat)
    embeddings = Embeddings(pipeline, admission, http.max_body, http.heartbeat)
    mounted: dict[str, ASGIApp] = {}
    if settings.graphql.enabled:
        from llmg.doors.graphql.app import make_graphql  # brings strawberry along

        mounted["/graphql"] = make_graphql(
            pipeline=pipeline,
            models=models,
            admission=admission,
            introspection=settings.graphql.introspection,
            transports=HTTP_TRANSPORTS,
            max_body=http.max_body,
            heartbeat=http.heartbeat,
        )
    return make_door(
        chat=chat,
        embeddings=embeddings,
        models=models,
        admission=admission,
        version=version,
        draining=draining,
        mounted=mounted,
    )


def _grpc(settings: Settings, pipeline: Provider, admission: Admission, models: service.Models) -> Any:
    from llmg.doors.grpc.server import GrpcServer  # brings grpc along
    from llmg.doors.grpc.services import Inference

    return GrpcServer(
        Inference(pipeline, admission),
        models,
        max_message=settings.grpc.max_message,
        reflection=settings.grpc.reflection,
        reuse_port=settings.server.workers > 1,
    )


class Container(containers.DeclarativeContainer):
    """Everything of one gateway process. `settings` and `launcher` are given to it."""

    settings = providers.Dependency(instance_of=Settings)
    launcher: providers.Dependency[Launcher | None] = providers.Dependency()

    clock = providers.Singleton(SystemClock)
    ids = providers.Singleton(RandomIds)
    observer = providers.Singleton(LogObserver)
    draining = providers.Singleton(Draining)
    transport = providers.Singleton(Transport)

    needs = providers.Singleton(_needs, settings, transport, launcher)
    models = providers.Singleton(_models, needs, clock)
    pipeline = providers.Singleton(Router, models, clock)
    model_service = providers.Singleton(_model_service, models)
    keys = providers.Singleton(_keys, settings)
    admission = providers.Singleton(Admission, keys, clock, ids, observer)
    rest = providers.Singleton(_rest, settings, pipeline, admission, model_service, draining)
    grpc = providers.Singleton(_grpc, settings, pipeline, admission, model_service)
