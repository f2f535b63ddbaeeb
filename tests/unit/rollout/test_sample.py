"""Rounds of generation: rollouts that fill up with groups which train something, whatever the ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rollout_fixtures import WithoutModel

from llmtrain.config.rl import RolloutConfig
from llmtrain.protocols import Interrupted, SourceFailed
from llmtrain.rewards.batch import Scores
from llmtrain.rewards.score import RewardFailed
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.sample import MAX_ROUNDS, SampledRollout, Sampler, prompts_needed, scored_together
from llmtrain.rollout.shaping import RunningScores


@dataclass(frozen=True)
class Asked:
    ids: tuple[int, ...]
    position: int


class Threads:
    """Ranks as threads of this process."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, rank: int, barrier: threading.Barrier, shared: dict[int, list[float]]) -> None:
        self.rank, self.world_size = rank, barrier.parties
        self._barrier, self._shared = barrier, shared

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        self._shared[self.rank] = list(values)
        self._barrier.wait(timeout=20)
        rows = [self._shared[rank] for rank in range(self.world_size)]
        self._barrier.wait(timeout=20)
        return rows

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self.gather_floats(values), strict=True)]

    def any(self, flag: bool) -> bool:
        return self.sum_floats([float(flag)])[0] > 0

    def gather_to_main(self, values: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError("not asked for")

    def gathered(self, module: torch.nn.Module) -> Any:
        raise AssertionError("not asked for")


def drawn_by(
    world_size: int,
    differs: Callable[[int], bool],
    position: int = 0,
    *,
    stops: Callable[[int], bool] = lambda rank: False,
    **changes: Any,
) -> list[SampledRollout]:
    """What each rank draws where the samples of prompts for which `differs` holds score differently."""
    settings = {"rewards": ["length"], "num_prompts": 4, "samples_per_prompt": 2, "dynamic_sampling": True} | changes
    barrier, shared = threading.Barrier(world_size), dict[int, list[float]]()
    found: dict[int, SampledRollout | BaseException] = {}

    def score(prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Scores:
        scores = [
            float(sample) if differs(asked.position) else 1.0 for asked, sample in zip(prompts, sample_ids, strict=True)
        ]
        return Scores(scores, {"one": scores, "two": [-score for score in scores]})

    def numbered(sample: int, sampling: Sampling) -> Generated:
        return Generated([sampling.rollout, sample], [-1.0, -1.0], True)

    def run(rank: int) -> None:
        try:
            sampler = Sampler(
                generator=WithoutModel(numbered, lambda: stops(rank)),
                prompt_at=lambda place: Asked((place,), place),
                num_prompts=100,
                score=score,
                sampling=Sampling(2),
                config=RolloutConfig.model_validate(settings),
                ranks=Threads(rank, barrier, shared),
            )
            found[rank] = sampler.sample(7, position, RunningScores())
        except (Interrupted, ValueError) as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    results = []
    for rank in range(world_size):
        result = found[rank]
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1}])
def test_a_reward_that_fails_on_one_rank_stops_all(failing: set[int]) -> None:
    barrier, shared = threading.Barrier(2), dict[int, list[float]]()
    said: dict[int, str] = {}

    def score(rank: int) -> Scores:
        if rank in failing:
            raise RewardFailed(f"reward one failed on sample {rank}")
        return Scores([1.0], {"one": [1.0]})

    def run(rank: int) -> None:
        with pytest.raises(SourceFailed) as caught:
            scored_together(lambda: score(rank), Threads(rank, barrier, shared))
        said[rank] = str(caught.value)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    own, other = "reward one failed on sample {}", "a reward failed on another process"
    assert said == {rank: own.format(rank) if rank in failing else other for rank in range(2)}


def trained(drawn: Sequence[SampledRollout]) -> list[int]:
    """The samples of all ranks that are trained on."""
    return sorted(one.samples.sample_ids[index] for one in drawn for index in one.chosen)


def test_a_rollout_fills_up_with_groups_that_differ() -> None:
    (drawn,) = drawn_by(1, lambda position: position % 3 == 0)
    assert trained([drawn]) == [0, 1, 6, 7, 12, 13, 18, 19]  # the prompts 0, 3, 6 and 9
    assert drawn.num_rounds > 1 and drawn.next_position >= 10


def test_what_each_reward_gave_is_kept_of_all_rounds() -> None:
    (drawn,) = drawn_by(1, lambda position: position % 3 == 0)
    scores = drawn.samples.scores.tolist()
    assert drawn.num_rounds > 1 and len(scores) == len(drawn.samples.sample_ids)
    assert drawn.samples.by_reward == {"one": scores, "two": [-score for score in scores]}


def test_without_dropping_a_rollout_is_one_round() -> None:
    (drawn,) = drawn_by(1, lambda position: False, dynamic_sampling=False)
    assert trained([drawn]) == list(range(8)) and (drawn.num_rounds, drawn.next_position) == (1, 4)


def test_the_next_rollout_goes_on_behind_the_last_prompt() -> None:
    (first,) = drawn_by(1, lambda position: position % 2 == 0)
    (second,) = drawn_by(1, lambda position: position % 2 == 0, first.next_position)
    assert min(second.samples.sample_ids) == 2 * first.next_position
    assert not set(first.samples.sample_ids) & set(second.samples.sample_ids)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_draw_and_train_what_one_rank_does(world_size: int) -> None:
    def differs(position: int) -> bool:
        return position % 4 == 1

    one, several = drawn_by(1, differs, 3), drawn_by(world_size, differs, 3)
    assert trained(several) == trained(one)
    assert sorted(sample for part in several for sample in part.samples.sample_ids) == one[0].samples.sample_ids
    assert {(part.num_rounds, part.next_position) for part in several} == {(one[0].num_rounds, one[0].next_position)}


def test_moments_of_scores_are_the_same_on_every_rank_and_of_all_rounds() -> None:
    several = drawn_by(2, lambda position: position % 2 == 0, score_normalise=True)
    assert several[0].running == several[1].running
    assert several[0].running.count == sum(len(part.samples.sample_ids) for part in several)


def test_a_rollout_that_does_not_fill_up_goes_on_with_what_there_is() -> None:
    (drawn,) = drawn_by(1, lambda position: position == 2)
    assert trained([drawn]) == [4, 5] and drawn.num_rounds == MAX_ROUNDS


def test_a_rollout_without_any_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="the samples of each of 40 prompts all score the same"):
        drawn_by(2, lambda position: False)


def test_a_stop_on_one_rank_interrupts_all() -> None:
    with pytest.raises(Interrupted):
        drawn_by(2, lambda position: True, stops=lambda rank: rank == 1)


@pytest.mark.parametrize(
    ("signals", "needed"),
    [
        ([], 8),
        ([False] * 8, 8),
        ([True] * 4 + [False] * 4, 8),
        ([True] * 7 + [False], 2),
        ([True] * 6 + [False] * 2, 3),
    ],
)
def test_a_round_asks_for_what_is_missing_at_the_share_seen(signals: list[bool], needed: int) -> None:
    assert prompts_needed(8, signals) == needed
