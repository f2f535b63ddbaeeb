"""The figures about a reward model, against what plain arithmetic gives on a few pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from tiny_chat import write_model
from tiny_pairs import write_pairs
from torch import Tensor, nn
from transformers import AutoTokenizer

from llmtrain.batch import PreferencePairs
from llmtrain.config.recipes import RewardStageConfig
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.loader.batches import SingleProcess
from llmtrain.data.loader.plan import DataPlan, plan_data
from llmtrain.data.packing.pairs import pack_pairs
from llmtrain.data.store.kinds import build_pair_stores
from llmtrain.eval.pairs import (
    EXAMPLES,
    HEADLINES,
    HeldOutPairs,
    PairScores,
    calibration,
    calibration_error,
    decisions,
    evaluation,
    length_bias,
    report_of,
    reward_card,
)
from llmtrain.models.folders.reward import beats_chance
from llmtrain.statistics.intervals import wilson_interval
from llmtrain.statistics.labelled import LabelledScores, area_under_curve
from llmtrain.statistics.weighted import correlation
from llmtrain.train.run_log import RunLog


def scored(
    chosen: list[float], rejected: list[float], weights: list[float] | None = None, **more: list[float]
) -> PairScores:
    columns: dict[str, Any] = {
        "chosen_tokens": [1.0] * len(chosen),
        "rejected_tokens": [1.0] * len(chosen),
        "weights": weights or [1.0] * len(chosen),
        "sources": [0.0] * len(chosen),
    } | more
    return PairScores(*(np.array(values) for values in (chosen, rejected, *columns.values())))


def test_loss_and_accuracy_are_means_over_pairs_and_a_tie_counts_half() -> None:
    report = report_of(scored([2.0, 0.0, 1.0, -1.0], [1.0, 1.0, 1.0, -3.0]), 1)
    assert report["accuracy"] == (1 + 0 + 0.5 + 1) / 4
    assert report["loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in (1, -1, 0, 2)) / 4)
    assert report["mean_margin"] == (1 - 1 + 0 + 2) / 4


def test_the_pairs_of_a_ranking_count_as_one_comparison() -> None:
    report = report_of(scored([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], weights=[0.5, 0.5, 1.0]), 1)
    assert (report["pairs"], report["comparisons"], report["accuracy"]) == (3, 2.0, 0.5)
    assert (report["accuracy_low"], report["accuracy_high"]) == wilson_interval(0.5, 2)


def test_auc_counts_every_chosen_against_every_rejected() -> None:
    chosen, rejected, weights = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0, 1.0]), np.array([1.0, 2.0, 1.0])
    wins = total = 0.0
    for c, cw in zip(chosen, weights, strict=True):
        for r, rw in zip(rejected, weights, strict=True):
            wins += cw * rw * ((c > r) + (c == r) / 2)
            total += cw * rw
    assert area_under_curve(LabelledScores(chosen, rejected, weights, weights)) == pytest.approx(wins / total)


def test_calibration_compares_confidence_with_accuracy_in_ten_bins() -> None:
    def margin(confidence: float) -> float:
        return math.log(confidence / (1 - confidence))

    # Two pairs at 0.72, one right; four at 0.91, three right.
    margins = [margin(0.72), -margin(0.72), margin(0.91), margin(0.91), margin(0.91), -margin(0.91)]
    bins = calibration(np.array(margins), np.ones(6))
    assert [part["comparisons"] for part in bins] == [0, 0, 0, 0, 2, 0, 0, 0, 4, 0]
    assert (bins[4]["confidence"], bins[4]["accuracy"]) == pytest.approx((0.72, 0.5))
    expected = (2 * abs(0.72 - 0.5) + 4 * abs(0.91 - 0.75)) / 6
    assert calibration_error(np.array(margins), np.ones(6)) == pytest.approx(expected)


def test_a_certain_model_that_is_always_right_is_calibrated() -> None:
    assert calibration_error(np.array([50.0, 60.0]), np.ones(2)) == pytest.approx(0.0)


def test_correlation_is_pearsons() -> None:
    x, y = [1.0, 2.0, 4.0], [1.0, 3.0, 2.0]
    mean_x, mean_y = sum(x) / 3, sum(y) / 3
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    assert correlation(np.array(x), np.array(y), np.ones(3)) == pytest.approx(covariance / spread)


def test_correlation_with_a_constant_is_nothing() -> None:
    assert math.isnan(correlation(np.array([1.0, 2.0]), np.ones(2), np.ones(2)))


def test_length_bias_is_seen_in_ranks_and_where_length_misleads() -> None:
    # The score is the square of the length: in order, but not in a line.
    scores = scored([1.0, 16.0, 9.0], [4.0, 9.0, 25.0], chosen_tokens=[1, 4, 3], rejected_tokens=[2, 3, 5])
    found = length_bias(scores)
    assert found["spearman"] == pytest.approx(1.0) and 0.9 < found["pearson"] < 1.0
    assert found["longer_is_chosen"] == pytest.approx(1 / 3)
    assert (found["accuracy_longer_chosen"], found["accuracy_longer_rejected"]) == (1.0, 0.0)
    assert found["comparisons_longer_rejected"] == 2.0


def test_ties_share_their_mean_rank() -> None:
    scores = scored([1.0, 1.0], [2.0, 3.0], chosen_tokens=[1, 2], rejected_tokens=[3, 3])
    ranks = correlation(np.array([0.5, 0.5, 2.0, 3.0]), np.array([0.0, 1.0, 2.5, 2.5]), np.ones(4))
    assert length_bias(scores)["spearman"] == pytest.approx(ranks)


def test_the_histogram_holds_every_comparison() -> None:
    report = report_of(scored([-9.0, 0.25, 100.0], [0.0, 0.0, 0.0]), 1)
    counts = report["margin_histogram"]["comparisons"]
    assert sum(counts) == 3 and (counts[0], counts[-1]) == (1, 1)
    assert counts[report["margin_histogram"]["edges"].index(0.0) + 1] == 1


def test_decisions_are_counted_by_length() -> None:
    found = decisions(
        scored(
            [1.0, 2.0, 0.0, 1.0, 5.0],
            [0.0, 3.0, 0.0, 2.0, 1.0],
            weights=[1.0, 2.0, 1.0, 0.5, 0.5],
            chosen_tokens=[5, 2, 2, 3, 1],
            rejected_tokens=[4, 4, 4, 3, 9],
        )
    )
    assert found["chosen_longer"] == {"prefers_chosen": 1.0, "tie": 0.0, "prefers_rejected": 0.0}
    assert found["same_length"] == {"prefers_chosen": 0.0, "tie": 0.0, "prefers_rejected": 0.5}
    assert found["rejected_longer"] == {"prefers_chosen": 0.5, "tie": 1.0, "prefers_rejected": 2.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("both", [True, False])
def test_a_score_that_is_not_finite_is_counted_and_ranked_wrong(bad: float, both: bool) -> None:
    report = report_of(scored([bad, 2.0, 1.0], [bad if both else 0.0, 1.0, 0.0]), 1)
    assert (report["pairs"], report["comparisons_not_finite"]) == (3, 1.0)
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["auc"] == 0.875  # of the two other pairs
    assert sum(report["margin_histogram"]["comparisons"]) == sum(p["comparisons"] for p in report["calibration"]) == 2


def test_scores_that_are_all_not_finite_leave_no_curve() -> None:
    report = report_of(scored([math.nan], [math.nan]), 1)
    assert report["roc"]["thresholds"] == [] and math.isnan(report["auc"]) and report["accuracy"] == 0
    assert report["examples"]["chosen"] == []


def test_examples_are_a_bounded_sample_that_does_not_depend_on_the_order_of_pairs() -> None:
    values = [float(number) for number in range(1000)]
    report = report_of(scored(values, [0.1234567] * 1000), 1)["examples"]
    assert report == report_of(scored(values[::-1], [0.1234567] * 1000), 1)["examples"]
    assert len(report["chosen"]) == EXAMPLES and {report["chosen"][0], report["chosen"][-1]} == {0.0, 999.0}
    assert set(report["rejected"]) == {0.123457}


def test_each_source_is_judged_apart() -> None:
    report = report_of(scored([1.0, 0.0, 2.0], [0.0, 1.0, 0.0], sources=[0.0, 1.0, 1.0]), 3)
    assert [found["pairs"] for found in report["sources"]] == [1, 2, 0]
    assert [found["accuracy"] for found in report["sources"][:2]] == [1.0, 0.5]
    assert math.isnan(report["sources"][2]["accuracy"])


def test_the_card_is_the_report_of_the_step_that_is_exported(tmp_path: Path) -> None:
    first, second = scored([1.0, 0.0], [0.0, 2.0]), scored([1.0, 3.0], [0.0, 2.0])
    log = RunLog(
        tmp_path,
        may_write=lambda: True,
        num_steps=5,
        flops=lambda totals: 0.0,
        peak_flops=1.0,
        track=lambda row, step: None,
        memory_bytes=lambda: 0,
    )
    for step, scores in ((0, first), (5, second)):
        log.eval_row({"step": step} | evaluation(report_of(scores, 2)))
    row = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert row.keys() == {"step", *(f"eval_{name}" for name in HEADLINES)}
    card = reward_card(tmp_path, 5, ["here/a.jsonl", "b.jsonl"])
    assert card is not None and (card["step"], card["accuracy"]) == (5, row["eval_accuracy"])
    report = report_of(second, 2)
    for name in ("loss", "accuracy", "auc", "pairs", "margin_histogram"):
        assert card[name] == report[name]
    assert [part["comparisons"] for part in card["calibration"]] == [
        part["comparisons"] for part in report["calibration"]
    ]
    assert card["sources"][0] == {"path": "here/a.jsonl", **report["sources"][0]}
    assert (card["sources"][1]["path"], card["sources"][1]["pairs"]) == ("b.jsonl", 0)
    assert card["sources"][1]["accuracy"] is None  # over no pairs
    assert reward_card(tmp_path, 3, ["a", "b"]) is None
    log.resume_at(4, 3)  # a run that goes on before it evaluates step 5 again
    assert reward_card(tmp_path, 5, ["a", "b"]) is None and reward_card(tmp_path, 0, ["a", "b"]) is not None


@pytest.mark.parametrize(("low", "expected"), [(0.51, True), (0.5, False), (None, False)])
def test_a_model_beats_chance_with_its_whole_interval(low: float | None, expected: bool) -> None:
    assert beats_chance({"accuracy_low": low}) is expected


class ByLength(nn.Module):
    """Scores a segment by its number of tokens, and remembers the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[PreferencePairs] = []

    def forward(self, batch: PreferencePairs) -> Tensor:
        self.seen.append(batch)
        return torch.tensor(batch.segment_lengths, dtype=torch.float32)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    """Two sources, of which a third is held out."""
    folder = tmp_path_factory.mktemp("plan")
    tokenizer = AutoTokenizer.from_pretrained(write_model(folder / "model"))
    sources = [str(write_pairs(folder / f"{seed}.jsonl", seed=seed, num_pairs=40)) for seed in (1, 2)]
    config = RewardStageConfig.model_validate(
        {
            "run": {"dir": str(folder)},
            "model": {"path": str(folder / "model")},
            "data": {"train": sources, "eval_fraction": 0.3, "max_seq_len": 256, "cache_dir": str(folder / "cache")},
            "train": {"steps": 1, "global_batch_tokens": 1024, "microbatch_tokens": 512},
            "reward": {},
        }
    )
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="completion")
    stores = build_pair_stores(config.data, encoder, report=lambda line: None)
    train, held_out = ([pack_pairs(store, 256) for store in split] for split in (stores.train, stores.eval))
    return plan_data(config, train, held_out, SingleProcess())


class RankOf:
    """One of several ranks, whose numbers `gather` exchanges."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, rank: int, world_size: int, gather: Callable[[Sequence[float]], list[list[float]]]) -> None:
        self.rank, self.world_size, self.gather_floats = rank, world_size, gather

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self.gather_floats(values), strict=True)]

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def any(self, flag: bool) -> bool:
        raise NotImplementedError

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        raise NotImplementedError


def numbers(tree: Any) -> list[float]:
    """All numbers of a tree, in order."""
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    if isinstance(tree, str):
        return []
    return [number for value in tree for number in numbers(value)] if isinstance(tree, list) else [float(tree)]


def by_ranks(plan: DataPlan, world_size: int) -> list[dict[str, Any] | None]:
    """What each of several ranks finds, each in a thread of its own, when they gather each other's numbers."""
    told: dict[int, list[float]] = {}
    everyone = Barrier(world_size)

    def evaluate(rank: int) -> dict[str, Any] | None:
        def gather(values: Sequence[float]) -> list[list[float]]:
            told[rank] = list(values)
            everyone.wait(timeout=60)
            rows = [told[other] for other in range(world_size)]
            everyone.wait(timeout=60)
            return rows

        return HeldOutPairs(plan, RankOf(rank, world_size, gather))(ByLength(), lambda: False)

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(evaluate, range(world_size)))


def test_several_ranks_find_what_one_finds(plan: DataPlan) -> None:
    (one,) = by_ranks(plan, 1)
    assert one is not None and one["report"]["pairs"] > 10
    for found in by_ranks(plan, 3):
        assert found is not None and found.keys() == one.keys()
        assert np.allclose(numbers(found), numbers(one), rtol=1e-12, atol=0, equal_nan=True)


def test_ranks_run_equally_many_batches(plan: DataPlan) -> None:
    counts = set()
    for rank in range(3):
        model = ByLength()
        HeldOutPairs(plan, RankOf(rank, 3, lambda values: [list(values)]))(model, lambda: False)
        counts.add(len(model.seen))
    assert len(counts) == 1


def test_evaluation_stops_when_asked_to(plan: DataPlan) -> None:
    asked = iter([False, True])
    held_out = HeldOutPairs(plan, RankOf(0, 1, lambda values: [list(values)]))
    model = ByLength()
    assert held_out(model, lambda: next(asked)) is None and len(model.seen) == 1
