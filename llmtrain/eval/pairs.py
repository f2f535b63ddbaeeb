"""A reward model on held-out pairs: accuracy, calibration and length bias.

Everything is computed from two scores and two lengths per pair. A pair counts with its weight: all pairs of one ranking
are one comparison together, also in the confidence interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmtrain.data.loader.plan import DataPlan
from llmtrain.data.packing.pairs import collate_pairs
from llmtrain.eval.gather import batches_by_source, rows_of_all_ranks
from llmtrain.eval.intervals import wilson_interval
from llmtrain.objectives.preference_losses import correctness
from llmtrain.protocols import Array, Ranks
from llmtrain.train.run_log import evaluation_path

CALIBRATION_BINS = 10
MARGIN_EDGES = (-8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the histogram, with open ends
HEADLINES = ("loss", "accuracy", "accuracy_low", "accuracy_high", "auc", "calibration_error")


@dataclass(frozen=True)
class PairScores:
    """The scores and lengths of held-out pairs; every array (pairs,) float64."""

    chosen: Array  # scores
    rejected: Array
    chosen_tokens: Array  # lengths of the answers
    rejected_tokens: Array
    weights: Array
    sources: Array  # number of each pair's source

    def where(self, mask: Array) -> PairScores:
        """The pairs that a mask (pairs,) keeps."""
        return PairScores(*(array[mask] for array in vars(self).values()))

    @property
    def margins(self) -> Array:
        return self.chosen - self.rejected


@dataclass(frozen=True)
class HeldOutPairs:
    """The held-out pairs of a plan, split among ranks; calling it evaluates a reward model."""

    plan: DataPlan
    ranks: Ranks

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The headlines of `report_of`, with `eval_loss` in nats per pair, and the report; None if asked to stop."""
        rows: list[tuple[float, ...]] = []
        for source, batch in batches_by_source(self.plan, self.ranks, collate_pairs):
            if should_stop():
                return None
            scores = model(batch.to(self.ranks.device)).double().cpu()
            if batch.num_pairs:
                lengths = batch.answer_lengths
                columns = (scores[::2], scores[1::2], lengths[::2], lengths[1::2], batch.weights)
                rows += [(*map(float, row), float(source)) for row in zip(*columns, strict=True)]
        table = rows_of_all_ranks(rows, len(PairScores.__dataclass_fields__), self.ranks)
        return evaluation(report_of(PairScores(*table.T), len(self.plan.eval)))


def report_of(scores: PairScores, num_sources: int) -> dict[str, Any]:
    """The numbers of `reward_card.json`; NaN for a mean over no pairs."""
    margins = scores.margins
    return {
        **_ranking(scores),
        "auc": area_under_curve(scores.chosen, scores.rejected, scores.weights),
        "calibration_error": calibration_error(margins, scores.weights),
        "mean_margin": _mean(margins, scores.weights),
        "calibration": calibration(margins, scores.weights),
        "margin_histogram": {
            "edges": list(MARGIN_EDGES),
            "comparisons": _counts(np.digitize(margins, MARGIN_EDGES), len(MARGIN_EDGES) + 1, scores.weights),
        },
        "length": length_bias(scores),
        "sources": [_ranking(scores.where(scores.sources == source)) for source in range(num_sources)],
    }


def area_under_curve(chosen: Array, rejected: Array, weights: Array) -> float:
    """The fraction of (chosen, rejected) answers of any two pairs in which chosen scores higher; a tie counts half."""
    if not len(chosen):
        return math.nan
    order = np.argsort(rejected, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(weights[order])])
    lower, upper = (below[np.searchsorted(rejected[order], chosen, side=side)] for side in ("left", "right"))
    return float(np.sum(weights * (lower + upper)) / 2 / weights.sum() ** 2)


def calibration(margins: Array, weights: Array) -> list[dict[str, float]]:
    """Mean confidence and accuracy in bins of equal width of the confidence sigmoid(|margin|), from 1/2 to 1."""
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    bins = np.minimum(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    found = []
    for number in range(CALIBRATION_BINS):
        inside = bins == number
        found.append(
            {
                "comparisons": float(weights[inside].sum()),
                "confidence": _mean(confidence[inside], weights[inside]),
                "accuracy": _mean(correctness(margins[inside]), weights[inside]),
            }
        )
    return found


def calibration_error(margins: Array, weights: Array) -> float:
    """Expected calibration error: mean |confidence - accuracy| over the bins (Naeini et al. 2015)."""
    bins = [part for part in calibration(margins, weights) if part["comparisons"]]
    total = sum(part["comparisons"] for part in bins)
    gaps = sum(part["comparisons"] * abs(part["confidence"] - part["accuracy"]) for part in bins)
    return gaps / total if total else math.nan


def length_bias(scores: PairScores) -> dict[str, float]:
    """Correlation of score and length, and the accuracy on pairs whose longer answer is chosen, or rejected."""
    all_scores = np.concatenate([scores.chosen, scores.rejected])
    lengths = np.concatenate([scores.chosen_tokens, scores.rejected_tokens])
    weights = np.concatenate([scores.weights, scores.weights])
    longer_rejected = scores.where(scores.rejected_tokens > scores.chosen_tokens)
    longer_chosen = scores.where(scores.chosen_tokens > scores.rejected_tokens)
    return {
        "pearson": correlation(all_scores, lengths, weights),
        "spearman": correlation(_ranks(all_scores), _ranks(lengths), weights),
        "longer_is_chosen": _mean((scores.chosen_tokens > scores.rejected_tokens).astype(float), scores.weights),
        "accuracy_longer_chosen": _mean(correctness(longer_chosen.margins), longer_chosen.weights),
        "accuracy_longer_rejected": _mean(correctness(longer_rejected.margins), longer_rejected.weights),
        "comparisons_longer_rejected": float(longer_rejected.weights.sum()),
    }


def correlation(first: Array, second: Array, weights: Array) -> float:
    """Pearson's correlation coefficient; NaN if one of the two does not vary."""
    if not len(first):
        return math.nan
    first, second = (values - _mean(values, weights) for values in (first, second))
    spread = math.sqrt(_mean(first**2, weights) * _mean(second**2, weights))
    return _mean(first * second, weights) / spread if spread else math.nan


def evaluation(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as an evaluation returns it: the headlines as `eval_NAME`, which the log shows, and the whole tree."""
    return {**{f"eval_{name}": report[name] for name in HEADLINES}, "report": report}


def reward_card(folder: Path, step: int, sources: Sequence[str]) -> dict[str, Any] | None:
    """The report of a step's evaluation in a run's folder, its sources named; None if the step was not evaluated."""
    path = evaluation_path(folder, step)
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    named = zip(sources, report["sources"], strict=True)
    return {"step": step, **report, "sources": [{"path": source, **found} for source, found in named]}


def _ranking(scores: PairScores) -> dict[str, float]:
    """The Bradley-Terry loss without margins, and accuracy with its 95 % interval; a tie counts half."""
    margins, count = scores.margins, float(scores.weights.sum())
    accuracy = _mean(correctness(margins), scores.weights)
    low, high = wilson_interval(accuracy, count)
    return {
        "pairs": len(margins),
        "comparisons": count,
        "loss": _mean(np.logaddexp(0, -margins), scores.weights),
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
    }


def _mean(values: Array, weights: Array) -> float:
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total else math.nan


def _counts(bins: Array, num_bins: int, weights: Array) -> list[float]:
    return np.bincount(bins, weights=weights, minlength=num_bins).tolist()


def _ranks(values: Array) -> Array:
    """Ranks from 0, equal values sharing their mean rank."""
    ordered = np.sort(values)
    first, last = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (first + last - 1) / 2
