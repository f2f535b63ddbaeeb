"""Thoughts in the text of an answer: where each is, however it is marked."""

from __future__ import annotations

import pytest

from llmtrain.data.thoughts import begins_with_thought, is_unended, thoughts, without_thoughts


@pytest.mark.parametrize(
    ("text", "found", "answer"),
    [
        ("4", [], "4"),
        ("<think>a</think>4", ["<think>a"], "4"),
        ("[THINK]a[/THINK]4", ["[THINK]a"], "4"),
        ("<seed:think>a</seed:think>4", ["<seed:think>a"], "4"),
        ("a</think>4", ["a"], "4"),
        ("a</think>4<think>b</think>5", ["a", "<think>b"], "5"),
        ("<think>a</think><think>b</think>5", ["<think>a", "<think>b"], "5"),
        ("<think> \n</think>4", [], "4"),
        ("<think>a<think>b</think>4", ["<think>a<think>b"], "4"),
        ("<thinking>a <think> b</thinking>4", ["<thinking>a <think> b"], "4"),
        ("4, not <think>", [], "4, not <think>"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>4",
            ["<|channel|>analysis<|message|>a<|end|><|start|>assistant"],
            "4",
        ),
        ("<|channel|>final<|message|>4", [], "4"),
        ("<|channel>thought\na<channel|>4", ["<|channel>thought\na"], "4"),
        ("<plan>a</plan>4", [], "<plan>a</plan>4"),
    ],
)
def test_where_thoughts_are(text: str, found: list[str], answer: str) -> None:
    assert [text[start:end] for start, end in thoughts(text)] == found
    assert without_thoughts(text) == answer
    assert [text[start - 2 : end - 2] for start, end in thoughts(f"??{text}", 2)] == found


@pytest.mark.parametrize("text", ["<think>a", "\n[THINK]", "<reasoning> a", "<|channel|>analysis<|message|>18"])
def test_a_thought_that_never_ends(text: str) -> None:
    assert is_unended(text) and begins_with_thought(text) and without_thoughts(text) == ""
    assert not is_unended(f"{text}</think>")
    assert list(thoughts(text)) == []


def test_an_empty_thought_is_none() -> None:
    assert begins_with_thought("<think>a</think>4")
    assert not begins_with_thought("<think>\n</think>4") and not begins_with_thought("4 <think>a</think>")


def test_many_that_never_end_are_looked_at_once() -> None:
    text = "</think>" + "<think>" * 200_000
    assert list(thoughts(text)) == []
