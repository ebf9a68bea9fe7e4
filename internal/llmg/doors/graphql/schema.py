"""The schema: what can be asked, and how it is answered from the pipeline."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Final

import strawberry
from graphql import GraphQLError
from strawberry.schema.config import StrawberryConfig
from strawberry.types.execution import ExecutionContext

from llmg.core.errors import Failure
from llmg.doors.graphql import errors
from llmg.doors.graphql.admin import AdminMutation, AdminQuery, log_refused
from llmg.doors.graphql.asking import Asking, Info
from llmg.doors.graphql.execution import Execution
from llmg.doors.graphql.inputs import ChatInput, CreateEmbeddingsInput, decode_chat, decode_embed
from llmg.doors.graphql.limits import Limits, Prepared, Preparing
from llmg.doors.graphql.outputs import (
    ChatCompletion,
    ChatCompletionPayload,
    CreateEmbeddingsPayload,
    EventEncoder,
    Model,
    Node,
    encode_answer,
    encode_embeddings,
    encode_model,
)
from llmg.doors.graphql.routes import Route, explain_route
from llmg.doors.graphql.scalars import SCALARS

_Id = Annotated[strawberry.ID, strawberry.argument(description="The id.")]
_Chat = Annotated[ChatInput, strawberry.argument(description="The conversation, and how to go on with it.")]
_Embed = Annotated[CreateEmbeddingsInput, strawberry.argument(description="The texts.")]
_Timeout = Annotated[
    float | None, strawberry.argument(description="How many seconds the answer may take. Absent: as configured.")
]


def _models(info: Info) -> list[Model]:
    with info.context.answering() as context:
        return [encode_model(model) for model in info.context.gateway.models.list(context.principal)]


def _model(info: Info, id: _Id) -> Model:
    with info.context.answering() as context:
        try:
            return encode_model(info.context.gateway.models.get(id, context.principal))
        except Failure as failure:
            failure.param = "id"  # as the argument is called here
            raise


async def _create_chat_completion(info: Info, input: _Chat, timeout: _Timeout = None) -> ChatCompletion:
    with info.context.answering(timeout) as context:
        chat = decode_chat(input, stream=False)
        return encode_answer(await info.context.gateway.whole(chat, context), chat.model)


async def _create_embeddings(info: Info, input: _Embed, timeout: _Timeout = None) -> CreateEmbeddingsPayload:
    with info.context.answering(timeout) as context:
        embed = decode_embed(input)
        return encode_embeddings(await info.context.gateway.whole(embed, context), embed.model)


async def _chat_completion(
    info: Info, input: _Chat, timeout: _Timeout = None
) -> AsyncGenerator[ChatCompletionPayload, None]:
    """Transports close this generator in the task that runs it, and with it the upstream's call."""
    with info.context.answering(timeout) as context:
        chat = decode_chat(input, stream=True)
        encoder = EventEncoder(chat.model)
        async with info.context.gateway.pipeline.open(chat, context) as batches:
            async for batch in batches:
                payload = encoder.encode(batch)
                if payload is not None:
                    yield payload


@strawberry.type(description="What can be looked up.")
class Query(AdminQuery):
    """Reads."""

    models: list[Model] = strawberry.field(resolver=_models, description="All models that were declared, by name.")
    model: Model | None = strawberry.field(
        resolver=_model, description="The model of that name: a declared one, or PROVIDER/MODEL."
    )
    node: Node | None = strawberry.field(
        resolver=_model, description="Whatever has that id. Only models have one for now."
    )
    explain_route: Route = strawberry.field(
        resolver=explain_route,
        description="Says which targets would be asked now, in which order, and why, and why not the others. Nobody is "
        "asked. Limits count it as the request, but without tokens. How targets do and what is noted of them is told "
        "in full to administrators, and to others in outline, unless the configuration says otherwise.",
    )


@strawberry.type(description="What can be asked of models, to be answered whole.")
class Mutation(AdminMutation):
    """Inference."""

    create_chat_completion: ChatCompletion = strawberry.mutation(
        resolver=_create_chat_completion, description="Goes on with a conversation."
    )
    create_embeddings: CreateEmbeddingsPayload = strawberry.mutation(
        resolver=_create_embeddings, description="Turns texts into vectors."
    )


@strawberry.type(description="What can be asked of models, to be answered as the answer is made.")
class Subscription:
    """Streams."""

    chat_completion: AsyncGenerator[ChatCompletionPayload, None] = strawberry.subscription(
        resolver=_chat_completion,
        description="Goes on with a conversation: the events of each read of the model's stream.",
    )


class Schema(strawberry.Schema):
    """Strawberry's, whose errors get their codes where every transport has them from, and results their extensions."""

    async def stream(self, *args: Any, **options: Any) -> Any:
        """See Strawberry's. `context_value` is an Asking."""
        asking = options["context_value"] = options["context_value"].operation()
        return _telling(await super().stream(*args, **options), asking, options.get("operation_name"))

    def process_errors(self, errors_: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """See Strawberry's."""
        asking = None if execution_context is None else execution_context.context
        request_id = asking.request_id if isinstance(asking, Asking) else None
        if request_id is None and isinstance(asking, Asking):
            request_id = asking.gateway.admission.request_id()
        if isinstance(asking, Asking) and execution_context is not None:
            asking.document = execution_context.graphql_document
        for error in errors_:
            errors.settle(error, request_id or "")


async def _telling(results: Any, asking: Asking, operation_name: str | None) -> AsyncGenerator[Any, None]:
    """The results; the first, and each that has errors, tells the way of the request, where it has gone one."""
    begun = told = False
    async with aclosing(results):
        async for result in results:
            if result.errors and not begun:  # what comes later was asked of somebody
                await log_refused(asking, operation_name, result.errors)
            begun = True
            if (not told or result.errors) and asking.last is not None and (way := errors.way(asking.last)):
                result.extensions = {**(result.extensions or {}), **way}
                told = True
            yield result


DEFAULT_LIMITS: Final = Limits(depth=12, aliases=15, tokens=4000)


def make_schema(limits: Limits = DEFAULT_LIMITS, *, introspection: bool = True) -> Schema:
    """The schema."""
    prepared = Prepared(limits, introspection)
    return Schema(
        Query,
        Mutation,
        Subscription,
        types=[Model],
        execution_context_class=Execution,
        config=StrawberryConfig(scalar_map=SCALARS, disable_field_suggestions=not introspection),
        extensions=[partial(Preparing, prepared)],
    )


def sdl() -> str:
    """The schema in GraphQL's own language."""
    return make_schema().as_str() + "\n"
