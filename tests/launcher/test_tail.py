"""What is kept of a process's output."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmg.launcher.tail import Tail


def words(text: str) -> str:
    tail = Tail()
    tail.feed(text.encode())
    tail.close()
    return tail.last_words()


def test_gives_lines_as_they_are_completed() -> None:
    tail = Tail()
    assert tail.feed(b"one\ntw") == ["one"]
    assert tail.feed(b"o\r\n\n") == ["two"]
    assert tail.feed(b"three") == []
    assert tail.close() == ["three"]
    assert tail.text() == "one\ntwo\nthree"


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_chunks_do_not_matter(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\x00", b"long" * 5000)
    whole, chunked = Tail(), Tail()
    expected = whole.feed(data) + whole.close()
    places = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    lines = [line for start, end in pairwise(places) for line in chunked.feed(data[start:end])] + chunked.close()
    assert lines == expected
    assert chunked.text() == whole.text()


def test_is_bounded() -> None:
    tail = Tail(limit=1000)
    for number in range(10_000):
        tail.feed(b"%d\n" % number)
    assert tail.text(10_000).splitlines()[-1] == "9999"
    assert 900 < len(tail.text(10_000)) <= 1000


def test_a_line_without_end_is_bounded_too() -> None:
    tail = Tail(limit=20_000)
    for _ in range(100):
        tail.feed(b"x" * 5000)
    assert len(tail.text(10**6)) <= 20_000


def test_secrets_are_blotted_out() -> None:
    tail = Tail(secrets=["hunter2hunter2"])
    assert tail.feed(b"the key is hunter2hunter2.\n") == ["the key is ***."]
    assert "hunter2" not in tail.text() + tail.last_words()


def test_last_words_are_the_last_lines() -> None:
    assert words("a\nb\n\nc\nd\n") == "b | c | d"
    assert words("") == ""


def test_last_words_of_a_traceback_are_the_error() -> None:
    assert words("Traceback (most recent call last):\n  File x\n    boom()\nValueError: boom\n") == "ValueError: boom"


def test_last_words_are_few() -> None:
    assert words("a" * 300 + "\n" + "b" * 300) == "b" * 300
    assert words("c" * 600) == "c" * 499 + "…"
