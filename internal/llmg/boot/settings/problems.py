"""What can be wrong with a configuration, told so that it can be put right.

No message holds a value that may be a secret: values are shown for choices, numbers and units only,
and never when they came out of a `${VARIABLE}`.
"""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

Keys = tuple[str | int, ...]
"""The place of a value: `("models", "fast", "targets", 1, "weight")`."""

_TOLD = 30  # names of those that there are
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right."""

    path: str
    """Where: `models.fast.targets[1].wieght`; empty for a file as a whole."""
    message: str
    """What is wrong, and what was expected."""
    origin: str
    """Who said so: `config/config.yaml:12:9` (line and column), or `environment variable LLMG_...`."""
    hint: str = ""
    """The nearest right key or value, or what to do: "did you mean `weight`?"."""

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint} ({self.origin})"


class SettingsError(Exception):
    """The configuration can't be used. `problems` holds everything that was found, not the first only."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        title = "the configuration has a problem:" if count == 1 else f"the configuration has {count} problems:"
        return "\n".join([title, *(f"  {problem}" for problem in self.problems)])


class Expected(ValueError):
    """Raised by validators: a value is not `what` was expected.

    `choices` are the right values, for a hint; `hint` is one that may repeat the wrong value. `show` says that this may
    be printed.
    """

    def __init__(self, what: str, *, choices: Iterable[str] = (), hint: str = "", show: bool = False) -> None:
        super().__init__(f"expected {what}")
        self.what = what
        self.choices = tuple(choices)
        self.hint = hint
        self.show = show


def dotted(keys: Keys) -> str:
    """`models.fast.targets[1]`; a key that isn't a plain word is quoted: `models["gpt-4.1"]`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _PLAIN_KEY.match(key):
            text += f".{key}" if text else key
        else:
            text += f"[{json.dumps(key, ensure_ascii=False)}]"
    return text


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like the word, or that the word is a part of, if any. Case and dashes don't count."""
    plain = {_plain(choice): choice for choice in choices}
    found = difflib.get_close_matches(_plain(word), plain, n=1)
    if not found and len(word) > 2:
        found = [choice for choice in plain if _plain(word) in choice]
    return plain[found[0]] if found else None


def suggestion(word: str, choices: Iterable[str]) -> str:
    """ "did you mean `weight`?", or the list of choices when none is near."""
    known = list(choices)
    if near := nearest(word, known):
        return f"did you mean `{near}`?"
    more = len(known) - _TOLD
    names = ", ".join(known[:_TOLD])
    return f"known: {names}{f' and {more} more' if more > 0 else ''}" if known else ""


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
