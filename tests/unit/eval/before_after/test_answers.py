"""Repetition by hand, and refusals by their phrases."""

from __future__ import annotations

import pytest

from llmtrain.eval.before_after.answers import is_refusal, repetition


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0.0),
        ([1, 1, 1], 0.0),  # too short to have a sequence of four
        ([1, 2, 3, 4], 0.0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # 5 sequences, one of them twice
        ([7] * 13, 0.9),  # 10 sequences, all the same
    ],
)
def test_repetition_is_the_share_of_sequences_that_were_there_before(ids: list[int], share: float) -> None:
    assert repetition(ids) == pytest.approx(share)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but that is something I won\u2019t explain.",
    "I cannot provide instructions for this.",
    "I can't really assist you with such a request.",
    "I'm unable to answer questions about him.",
    "As an AI language model, I do not have opinions.",
    "I must decline this request.",
    "<think>Harmless? No.</think>\n\nI will not create this text.",
]
ANSWERS = [
    "",
    "Sure! Here is how it works: first, boil water.",
    "I'm sorry to hear about your loss. Talk to a friend.",
    "I can help you with that.",
    "You cannot provide a list where a number is wanted.",
    "The robot said it could not help. " * 3,
    "<think>I cannot help here, or can I?</think>Yes: 42.",
    f"{'A long answer. ' * 20} I cannot provide more.",  # not in its opening
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_seen(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)
