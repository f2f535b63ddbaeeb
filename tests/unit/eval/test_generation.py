"""Held-out prompts are answered and scored on all ranks, and a stop is heard while they are answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmtrain.eval.generation import HeldOutScore
from llmtrain.rewards.score import Scores
from llmtrain.rollout.engine import Generated, Sampling


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


@dataclass(frozen=True)
class WithoutModel:
    """An engine whose responses are the numbers of samples."""

    should_stop: Callable[[], bool]
    gives_values: bool = False

    def current_weights(self) -> AbstractContextManager[None]:
        return nullcontext()

    def generate(
        self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], sampling: Sampling
    ) -> list[Generated] | None:
        return None if self.should_stop() else [Generated([sample], [-1.0], True) for sample in sample_ids]


def values(
    *names: str, ranks: OneRank | None = None, is_stopped: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    def score(prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Scores:
        by_reward = {name: [float(sample + number) for sample in sample_ids] for number, name in enumerate(names)}
        return Scores([sum(column) for column in zip(*by_reward.values(), strict=True)], by_reward)

    evaluate = HeldOutScore([Asked((1,))] * 4, WithoutModel(is_stopped), score, Sampling(2), ranks or OneRank())
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
