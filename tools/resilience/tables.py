"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is words, the others are figures."""
    lines = [head, ("---",) + ("---:",) * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(value: float | None) -> str:
    """To a tenth."""
    return "" if value is None else f"{value:.1f} s"


def milliseconds(value: float) -> str:
    """Of seconds, whole."""
    return f"{value * 1000:.0f} ms"
