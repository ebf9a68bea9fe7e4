"""The provider without a model."""

from __future__ import annotations

from llmg.core.assemble import assemble
from llmg.core.events import Embeddings, check
from llmg.core.request import Chat, Embed, Image, Message, Sampling, Text
from llmg.providers.echo import DIMENSIONS, Echo
from llmg.testing.conformance import assert_conforms, collect


def say(text: str, **fields: object) -> Chat:
    """A request of one message."""
    return Chat(model="m", messages=(Message(role="user", parts=(Text(text),)),), **fields)  # type: ignore[arg-type]


async def test_it_keeps_to_the_port() -> None:
    await assert_conforms(Echo(), say("one two  three"))
    await assert_conforms(Echo(), say("one two", n=3))
    await assert_conforms(Echo(), say(""))


async def test_it_says_the_last_users_words() -> None:
    messages = (
        Message(role="user", parts=(Text("first"),)),
        Message(role="user", parts=(Text("sec"), Image("data:,"), Text("ond"))),
        Message(role="assistant", parts=(Text("third"),)),
    )
    answer = assemble(await collect(Echo(), Chat(model="m", messages=messages)))
    assert answer.choices[0].parts[0].data == "second"


async def test_it_stops_at_the_limit() -> None:
    answer = assemble(await collect(Echo(), say("one two three", sampling=Sampling(max_tokens=2), n=2)))
    assert [choice.parts[0].data for choice in answer.choices] == ["one two "] * 2
    assert [choice.reason for choice in answer.choices] == ["length"] * 2
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.source) == (3, 4, "estimated")


async def test_a_text_has_one_vector_of_length_one() -> None:
    events = await collect(Echo(), Embed(model="m", inputs=("a", "b", "a", (1, 2))))
    answer = assemble(events)
    assert isinstance(answer.result, Embeddings)
    vectors = [vector.values for vector in answer.result.vectors]
    assert vectors[0] == vectors[2] != vectors[1]
    for vector in vectors:
        assert len(vector) == DIMENSIONS
        assert abs(sum(float(x) ** 2 for x in vector) - 1) < 1e-6


async def test_as_many_dimensions_as_asked_for() -> None:
    answer = assemble(await collect(Echo(), Embed(model="m", inputs=("a",), dimensions=7)))
    assert isinstance(answer.result, Embeddings)
    assert len(answer.result.vectors[0].values) == 7


async def test_each_word_is_a_batch_of_a_stream() -> None:
    events = await collect(Echo(), say("one two three", stream=True))
    check(events)
