"""The command line: `llmg serve | chat | models | config | version`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="llmg", no_args_is_help=True, add_completion=False, help="A multi-protocol LLM gateway.")

ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="The configuration file. Left out: config/config.yaml, or the default."),
]


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Serve all doors."""
    import uvloop

    from llmg.boot import logs
    from llmg.boot.serve import listen, run_alone
    from llmg.boot.settings import SettingsError, load

    try:
        settings = load(config)
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    logs.configure(settings.log.level, settings.log.format)
    try:
        listener = listen(settings.http.bind, settings.http.backlog)
    except OSError as error:
        typer.echo(f"can't listen on {settings.http.server_addr}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    uvloop.run(run_alone(settings, listener))


@app.command()
def version() -> None:
    """Which version and commit this is."""
    from llmg.boot.version import version as ask

    this = ask()
    typer.echo(f"llmg {this['version']} ({this['commit']}), Python {this['python']}")


def main() -> None:
    """The entry point."""
    app()
