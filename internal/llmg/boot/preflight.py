"""What is checked before the gateway listens: by `llmg serve`, and by `llmg config check` alone.

No socket is opened, and no engine started.
"""

from __future__ import annotations

from llmg.boot import tls
from llmg.boot.current import check
from llmg.boot.exposure import bound
from llmg.boot.settings import Problem, Settings, SettingsError
from llmg.boot.settings.problems import Keys

_OFF = "`enabled` of rest, websocket, gateway, graphql and grpc"


class Unstartable(Exception):
    """What the configuration names can't be used here. `keys`: where it is named."""

    def __init__(self, message: str, keys: Keys) -> None:
        super().__init__(message)
        self.keys = keys


def check_start(settings: Settings) -> None:
    """Raises SettingsError, Exposed, Failure, TlsError or Unstartable."""
    if not bound(settings):
        raise SettingsError([Problem("", "there is nothing to serve: every protocol is off", _OFF)])
    check(settings)
    tls.check(settings)
    _check_catalog(settings)


def _check_catalog(settings: Settings) -> None:
    """The file may be missing: then the catalog is empty. The folder may not."""
    file = None if settings.catalog is None else settings.catalog.file
    if file is None:
        return
    if file.is_dir():
        raise Unstartable(f"catalog.file: {file} is a folder", ("catalog", "file"))
    if not file.absolute().parent.is_dir():
        raise Unstartable(f"catalog.file: there is no folder {file.absolute().parent}", ("catalog", "file"))
