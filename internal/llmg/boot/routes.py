"""`llmg routes explain`: where a request would go, by a running gateway or by a configuration alone."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table
from rich.text import Text as Words

from llmg.boot import build
from llmg.boot.administration import load_catalog
from llmg.boot.chat import Dial
from llmg.boot.current import compiled
from llmg.boot.launching import LazyLauncher
from llmg.boot.limits import make_limiter
from llmg.boot.settings import Settings
from llmg.boot.system import RandomIds, SystemClock
from llmg.core.context import ADMIN, Context, Principal
from llmg.core.errors import Failure, Kind
from llmg.core.explanation import Candidate, Explanation, Stage
from llmg.core.request import Chat, Message, Text
from llmg.ports import Clock
from llmg.providers.http import Transport
from llmg.routing.catalog import Catalog
from llmg.services.admission import Authenticator
from llmg.services.explain import Explain

_PATIENCE: Final = 5.0  # seconds for the catalog in Redis to be read


def by_gateway(dial: Dial, model: str, prompt: str, level: str) -> Explanation:
    """As the gateway sees it now: for the clients of that level, if one is named. Raises Failure."""

    async def ask() -> Explanation:
        async with dial() as line:
            return await line.explain(model, [("user", prompt)], level)

    return asyncio.run(ask())


def by_config(settings: Settings, api_key: str | None, model: str, prompt: str, level: str) -> Explanation:
    """As a gateway with these settings would see it when it starts, in full: for whose key that is; None: for who
    belongs to no level but the root, and may name another `level`. Raises SettingsError, Failure or Exposed."""

    async def ask() -> Explanation:
        transport, launcher, clock = Transport(), LazyLauncher(), SystemClock()
        needs = build.Needs(await _whole(settings, api_key, level), transport, launcher)
        try:
            _, catalog = compiled(needs, clock)
            principal = _principal(catalog, api_key, clock)
            new = RandomIds().new()
            context = Context(id=new, request_id=new, door="cli", created=int(clock.time()), principal=principal)
            chat = Chat(model=model, messages=(Message(role="user", parts=(Text(prompt),)),))
            explain = Explain(lambda of: of.scope, catalog.scopes.get, make_limiter(clock), clock, lambda _: True)
            return await explain.explain(chat, context, level)
        finally:
            await needs.close()
            await launcher.aclose()

    return asyncio.run(ask())


async def _whole(settings: Settings, api_key: str | None, level: str) -> Settings:
    """With the tenants of the catalog that they name, where the key or the level may be one of theirs."""
    if (api_key is None and not level) or settings.catalog is None:
        return settings
    try:
        async with asyncio.timeout(_PATIENCE):
            return await load_catalog(settings, peek=True)
    except TimeoutError:
        words = f"the catalog in Redis did not answer within {_PATIENCE:g} seconds"
        raise Failure(Kind.UPSTREAM_UNAVAILABLE, words) from None


def _principal(catalog: Catalog, api_key: str | None, clock: Clock) -> Principal:
    if api_key is None:  # who has the configuration may see all of it
        return replace(catalog.anonymous or Principal(scope=catalog.scope), roles=frozenset({ADMIN}))
    try:
        return Authenticator(lambda: catalog, clock).authenticate(api_key)
    except Failure as failure:
        raise Failure(failure.kind, f"--api-key: {failure.message}") from None


def show(explanation: Explanation, as_json: bool) -> None:
    """On the terminal: a table for each model on the way, or all of it as JSON."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(explanation)).decode())  # noqa: T201 - it is the answer
        return
    console = Console()
    for stage in explanation.stages:
        console.print(_table(stage))


def _table(stage: Stage) -> Table:
    about = [_about(one) for one in stage.targets]
    known = ["about"] if any(about) else []
    table = Table("", "target", *known, "why", title=Words(f"{stage.model} ({stage.policy})"), title_justify="left")
    for one, words in zip(stage.targets, about, strict=True):
        place = "-" if one.place is None else str(one.place)
        cells = [place, f"{one.provider}/{one.model}", *([words] if known else []), one.reason]
        table.add_row(*[Words(cell) for cell in cells], style="dim" if one.place is None else None)
    return table


def _about(one: Candidate) -> str:
    """What is known of a target; of its weight, where it is not 1."""
    said = [f"weight {one.weight:.3g}"] if one.weight != 1 else []
    if one.price is not None:
        said.append(f"{one.price.input:g} / {one.price.output:g} USD per million")
    if one.context_window is not None:
        said.append(f"{one.context_window} token{'' if one.context_window == 1 else 's'}")
    labels = [f"{name}={value}" for name, value in one.labels.items()]
    return ", ".join([*said, *one.capabilities, *([one.region] if one.region else []), *labels])
