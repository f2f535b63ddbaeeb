"""Answers to held-out questions: what is written of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollout_fixtures import OneRank, WithoutModel
from scripted_model import scripted_tokenizer
from torch import nn

from llmtrain.data.formats.held_out import Question
from llmtrain.eval.samples import WithSamples
from llmtrain.rollout.engine import Generated, Sampling


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [("hi<think>\n", "<think>\na</think>b"), ("hi<think>", "<think>a</think>b"), ("<think> hi", "a</think>b")],
)
def test_a_thought_that_the_prompt_opens_is_part_of_the_answer(tmp_path: Path, prompt: str, shown: str) -> None:
    tokenizer = scripted_tokenizer(tmp_path, (), None)
    ids, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, "a</think>b<|im_end|>"))
    question = Question(tuple(ids), ({"role": "user", "content": "hi"},), None)
    engine = WithoutModel(lambda sample, sampling: Generated(answer, [-1.0] * len(answer), True))
    evaluate = WithSamples(
        lambda model, should_stop: {"eval_loss": 1.0, "summary": ""},
        [question], engine, Sampling(20), tokenizer, OneRank(),
    )  # fmt: skip
    values = evaluate(nn.Identity(), lambda: False)
    assert values is not None and [row["response"] for row in values["samples"]] == [shown]
