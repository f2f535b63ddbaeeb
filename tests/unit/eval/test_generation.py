"""Held-out prompts are answered and scored on all ranks, and a stop is heard while they are answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmtrain.eval import generation as held_out
from llmtrain.eval.generation import HeldOutScore
from llmtrain.rewards.score import Scores
from llmtrain.rollout.local.generate import Generated
from llmtrain.rollout.local.sampling import Sampling


@dataclass(frozen=True)
class Asked:
    ids: tuple[int, ...]


class OneRank:
    rank, world_size, device, dtype = 0, 1, torch.device("cpu"), torch.float32

    def __init__(self, *, others_stopped: bool = False) -> None:
        self._others_stopped = others_stopped

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        return [list(values)]

    def gather_to_main(self, values: torch.Tensor) -> list[torch.Tensor]:
        return [values]

    def any(self, flag: bool) -> bool:
        return flag or self._others_stopped

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.fixture(autouse=True)
def responses_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(
        model: Any, prompts: Any, sample_ids: Sequence[int], settings: Sampling, should_stop: Callable[[], bool]
    ) -> list[Generated] | None:
        return None if should_stop() else [Generated([sample], [-1.0], True) for sample in sample_ids]

    monkeypatch.setattr(held_out, "generate", answered)


def values(
    *names: str, ranks: OneRank | None = None, is_stopped: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    def score(prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Scores:
        by_term = {name: [float(sample + number) for sample in sample_ids] for number, name in enumerate(names)}
        return Scores([sum(column) for column in zip(*by_term.values(), strict=True)], by_term)

    policy = LlamaForCausalLM.__new__(LlamaForCausalLM)
    evaluate = HeldOutScore([Asked((1,))] * 4, policy, score, Sampling(2), ranks or OneRank(), is_stopped)
    return evaluate(nn.Identity(), lambda: False)


def test_a_stop_is_heard_while_responses_are_drawn() -> None:
    assert values("a", is_stopped=lambda: True) is None


def test_a_stop_of_another_rank_ends_the_evaluation_of_all() -> None:
    assert values("a", ranks=OneRank(others_stopped=True)) is None


def test_each_of_several_rewards_has_a_mean_of_its_own() -> None:
    found = values("a", "model runs/b")
    assert found is not None
    assert (found["eval_score"], found["eval_score/a"], found["eval_score/model runs/b"]) == (4.0, 1.5, 2.5)


def test_a_reward_alone_is_told_as_the_total() -> None:
    found = values("a")
    assert found is not None and not [name for name in found if "/" in name]


def test_held_out_prompts_are_answered_in_the_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    precisions: list[bool] = []

    def answered(model: Any, prompts: Any, sample_ids: Sequence[int], *others: Any) -> list[Generated]:
        precisions.append(torch.is_autocast_enabled("cpu"))
        return [Generated([sample], [-1.0], True) for sample in sample_ids]

    def score(prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Scores:
        return Scores([1.0] * len(sample_ids), {"one": [1.0] * len(sample_ids)})

    monkeypatch.setattr(held_out, "generate", answered)
    shape = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    ranks = OneRank()
    ranks.dtype = torch.bfloat16
    HeldOutScore([Asked((1,))], LlamaForCausalLM(shape), score, Sampling(2), ranks, lambda: False)(
        nn.Identity(), lambda: False
    )
    assert precisions == [True]
