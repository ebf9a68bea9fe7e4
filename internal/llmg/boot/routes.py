"""`llmg routes explain`: where a request would go, by a running gateway or by a configuration alone."""

from __future__ import annotations

import asyncio

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text as Words

from llmg.boot import build
from llmg.boot.chat import Dial
from llmg.boot.launching import LazyLauncher
from llmg.boot.settings import Settings
from llmg.boot.system import RandomIds, SystemClock
from llmg.core.context import Context
from llmg.core.explanation import Candidate, Explanation, Stage
from llmg.core.request import Chat, Message, Text
from llmg.providers.http import Transport
from llmg.services.explain import Explain


def by_gateway(dial: Dial, model: str, prompt: str) -> Explanation:
    """As the gateway sees it now. Raises Failure."""

    async def ask() -> Explanation:
        async with dial() as line:
            return await line.explain(model, [("user", prompt)])

    return asyncio.run(ask())


def by_config(settings: Settings, model: str, prompt: str) -> Explanation:
    """As a gateway with these settings would see it when it starts, for who has no tenant. Raises Failure."""

    async def ask() -> Explanation:
        transport, launcher, clock = Transport(), LazyLauncher(), SystemClock()
        needs = build.Needs(settings, transport, launcher)
        try:
            scope = build.make_models(needs, int(clock.time()))
            new = RandomIds().new()
            context = Context(id=new, request_id=new, door="cli", created=int(clock.time()))
            chat = Chat(model=model, messages=(Message(role="user", parts=(Text(prompt),)),))
            return Explain(lambda _: scope, clock).explain(chat, context)
        finally:
            await needs.close()
            await launcher.aclose()

    return asyncio.run(ask())


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
    said = [f"weight {one.weight:g}"] if one.weight != 1 else []
    if one.price is not None:
        said.append(f"{one.price.input:g} / {one.price.output:g} USD per million")
    if one.context_window is not None:
        said.append(f"{one.context_window} tokens")
    labels = [f"{name}={value}" for name, value in one.labels.items()]
    return ", ".join([*said, *one.capabilities, *([one.region] if one.region else []), *labels])
