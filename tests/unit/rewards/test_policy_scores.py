"""What rewards and `samples.jsonl` get to see of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tiny_chat import write_model
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.data.prompts import Prompt
from llmtrain.rewards.batch import WeightedReward, of_rows
from llmtrain.rewards.score import ids_before_stop, response_text, score_responses
from llmtrain.rollout.engine import Generated
from llmtrain.rollout.sample_log import readable

PROMPT = Prompt((1,), ({"role": "user", "content": "hi"},), {}, "rows.jsonl:1")
CASES = [
    ("yes<|im_end|>", True, "yes"),
    ("yes<|im_start|>user more<|im_end|>", True, "yes<|im_start|>user more"),
    ("yes<|pad|>", False, "yes<|pad|>"),
    ("<|im_end|>", True, ""),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))
    return made


def response_of(text: str, stopped: bool, tokenizer: PreTrainedTokenizerFast) -> Generated:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Generated(ids, [-1.0] * len(ids), stopped)


@pytest.mark.parametrize(("text", "stopped", "shown"), CASES)
def test_a_reward_sees_every_token_but_the_one_that_stopped_the_response(
    tokenizer: PreTrainedTokenizerFast, text: str, stopped: bool, shown: str
) -> None:
    seen: list[str] = []

    def reward(prompts: Any, responses: Sequence[str], rows: Any) -> list[float]:
        seen.extend(responses)
        return [1.0]

    score_responses(
        [WeightedReward("one", 1.0, of_rows(reward))], tokenizer, [PROMPT], [response_of(text, stopped, tokenizer)], [0]
    )
    assert seen == [shown]


@pytest.mark.parametrize("end", ["\nUser:", "\nUser: x"])
def test_a_reward_sees_a_response_up_to_its_stop_text(tokenizer: PreTrainedTokenizerFast, end: str) -> None:
    response = replace(response_of(f"yes{end}", True, tokenizer), stop_text="\nUser:")
    assert response_text(response, tokenizer) == "yes"
    assert ids_before_stop(response) == response.response_ids


@pytest.mark.parametrize(("text", "stopped", "shown"), CASES)
def test_samples_tell_what_rewards_see(
    tokenizer: PreTrainedTokenizerFast, text: str, stopped: bool, shown: str
) -> None:
    sample = {"prompt": PROMPT, "response": response_of(text, stopped, tokenizer)}
    assert readable(sample, tokenizer)["response"] == shown


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("say <think> first<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n", ""),
    ],
)
def test_a_thought_that_the_prompt_opens_belongs_to_the_answer(
    tokenizer: PreTrainedTokenizerFast, prompt: str, opened: str
) -> None:
    seen: list[str] = []
    ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    asked = Prompt(ids, ({"role": "user", "content": "hi"},), {}, "rows.jsonl:1")
    response = response_of("a</think>b<|im_end|>", True, tokenizer)
    reward = WeightedReward("one", 1.0, of_rows(lambda prompts, texts, rows: seen.extend(texts) or [1.0]))
    score_responses([reward], tokenizer, [asked], [response], [0])
    assert seen == [f"{opened}a</think>b"]
    assert readable({"prompt": asked, "response": response}, tokenizer)["response"] == seen[0]
