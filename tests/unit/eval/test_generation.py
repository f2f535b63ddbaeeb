"""Held-out prompts are answered and scored on all ranks, and a stop is heard while they are answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rollout_fixtures import Asked, OneRank, WithoutModel
from torch import nn

from llmtrain.eval.generation import HeldOutScore
from llmtrain.rewards.batch import Scores
from llmtrain.rollout.engine import Generated, Sampling


class OtherStopped(OneRank):
    """Another rank was asked to stop."""

    def any(self, flag: bool) -> bool:
        return True


def values(
    *names: str, ranks: OneRank | None = None, is_stopped: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    def score(prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Scores:
        by_reward = {name: [float(sample + number) for sample in sample_ids] for number, name in enumerate(names)}
        return Scores([sum(column) for column in zip(*by_reward.values(), strict=True)], by_reward)

    def numbered(sample: int, sampling: Sampling) -> Generated:
        return Generated([sample], [-1.0], True)

    tokenizer: Any = None  # no sample is kept
    evaluate = HeldOutScore(
        [Asked((1,))] * 4, WithoutModel(numbered, is_stopped), score, Sampling(2), ranks or OneRank(), tokenizer
    )
    return evaluate(nn.Identity(), lambda: False)


def test_a_stop_is_heard_while_responses_are_drawn() -> None:
    assert values("a", is_stopped=lambda: True) is None


def test_a_stop_of_another_rank_ends_the_evaluation_of_all() -> None:
    assert values("a", ranks=OtherStopped()) is None


def test_each_of_several_rewards_has_a_mean_of_its_own() -> None:
    found = values("a", "model runs/b")
    assert found is not None
    assert (found["eval_score"], found["eval_score/a"], found["eval_score/model runs/b"]) == (4.0, 1.5, 2.5)


def test_a_reward_alone_is_told_as_the_total() -> None:
    found = values("a")
    assert found is not None and not [name for name in found if "/" in name]
