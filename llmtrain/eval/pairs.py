"""A reward model on held-out pairs: accuracy, ROC, calibration and length bias.

Everything is computed from two scores and two lengths per pair. A pair counts with its weight: all pairs of one ranking
are one comparison together, also in the confidence interval. A pair with a score that is not finite is ranked wrong,
and only counted.
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
from llmtrain.objectives.preference_losses import correctness
from llmtrain.protocols import Array, Ranks
from llmtrain.statistics.intervals import wilson_interval
from llmtrain.statistics.labelled import (
    LabelledScores,
    area_under_curve,
    best_threshold,
    confusion,
    length_correlation,
    roc,
    score_histogram,
    spread_out,
)
from llmtrain.statistics.weighted import mean
from llmtrain.system.run_files import evaluation_path

CALIBRATION_BINS = 10
MARGIN_EDGES = (-8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the histogram, with open ends
EXAMPLES = 200  # pairs whose scores and lengths are kept, for a picture of the score against the length
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
        """How much higher the chosen answer scores; NaN if a score is not finite, so that no such pair is right."""
        with np.errstate(invalid="ignore", over="ignore"):  # infinity minus infinity
            margins = self.chosen - self.rejected
        return np.where(np.isfinite(margins), margins, np.nan)

    @property
    def answers(self) -> LabelledScores:
        """The two answers of each pair as a good and a bad one."""
        return LabelledScores(self.chosen, self.rejected, self.weights, self.weights)


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
    """The numbers of `reward_card.json`; NaN for a mean over no pairs.

    `confusion` is of single answers, called good from the threshold on that calls most of these right; `decisions` is
    of pairs, by which answer is longer and which one scores higher.
    """
    finite = scores.where(np.isfinite(scores.margins))
    margins, answers = finite.margins, finite.answers
    return {
        **_ranking(scores),
        "comparisons_not_finite": float(scores.weights.sum() - finite.weights.sum()),
        "auc": area_under_curve(answers),
        "calibration_error": calibration_error(margins, finite.weights),
        "mean_margin": mean(margins, finite.weights),
        "calibration": calibration(margins, finite.weights),
        "margin_histogram": {
            "edges": list(MARGIN_EDGES),
            "comparisons": _counts(np.digitize(margins, MARGIN_EDGES), len(MARGIN_EDGES) + 1, finite.weights),
        },
        "score_histogram": score_histogram(answers),
        "roc": roc(answers),
        "confusion": confusion(answers, best_threshold(answers)),
        "decisions": decisions(finite),
        "length": length_bias(finite),
        "examples": examples(finite),
        "sources": [_ranking(scores.where(scores.sources == source)) for source in range(num_sources)],
    }


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
                "confidence": mean(confidence[inside], weights[inside]),
                "accuracy": mean(correctness(margins[inside]), weights[inside]),
            }
        )
    return found


def calibration_error(margins: Array, weights: Array) -> float:
    """Expected calibration error: mean |confidence - accuracy| over the bins (Naeini et al. 2015)."""
    bins = [part for part in calibration(margins, weights) if part["comparisons"]]
    total = sum(part["comparisons"] for part in bins)
    gaps = sum(part["comparisons"] * abs(part["confidence"] - part["accuracy"]) for part in bins)
    return gaps / total if total else math.nan


def decisions(scores: PairScores) -> dict[str, dict[str, float]]:
    """Comparisons by the longer answer, and by the answer that scores higher."""
    longer = np.sign(scores.chosen_tokens - scores.rejected_tokens)
    preferred = np.sign(scores.margins)
    lengths = {"chosen_longer": 1, "same_length": 0, "rejected_longer": -1}
    choices = {"prefers_chosen": 1, "tie": 0, "prefers_rejected": -1}
    return {
        length: {
            choice: float(scores.weights[(longer == sign) & (preferred == side)].sum())
            for choice, side in choices.items()
        }
        for length, sign in lengths.items()
    }


def length_bias(scores: PairScores) -> dict[str, float]:
    """Correlation of score and length, and the accuracy on pairs whose longer answer is chosen, or rejected."""
    all_scores = np.concatenate([scores.chosen, scores.rejected])
    lengths = np.concatenate([scores.chosen_tokens, scores.rejected_tokens])
    weights = np.concatenate([scores.weights, scores.weights])
    longer_rejected = scores.where(scores.rejected_tokens > scores.chosen_tokens)
    longer_chosen = scores.where(scores.chosen_tokens > scores.rejected_tokens)
    return {
        **length_correlation(all_scores, lengths, weights),
        "longer_is_chosen": mean((scores.chosen_tokens > scores.rejected_tokens).astype(float), scores.weights),
        "accuracy_longer_chosen": mean(correctness(longer_chosen.margins), longer_chosen.weights),
        "accuracy_longer_rejected": mean(correctness(longer_rejected.margins), longer_rejected.weights),
        "comparisons_longer_rejected": float(longer_rejected.weights.sum()),
    }


def examples(scores: PairScores) -> dict[str, list[float]]:
    """Scores and lengths of at most EXAMPLES pairs, evenly spaced by the score of the chosen answer, to six digits."""
    names = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
    return spread_out({name: vars(scores)[name] for name in names}, EXAMPLES)


def evaluation(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as an evaluation returns it: the headlines as `eval_NAME`, the whole tree, what the log shows."""
    values = {f"eval_{name}": report[name] for name in HEADLINES}
    return {**values, "report": report, "summary": accuracy_summary(values)}


def accuracy_summary(values: Mapping[str, float]) -> str:
    """Loss and accuracy of an evaluation, with the accuracy's 95 % interval, in words."""
    accuracy, low, high = (values[f"eval_{name}"] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    return f"held-out loss {values['eval_loss']:.4f}, accuracy {accuracy:.1%} ({low:.1%} to {high:.1%})"


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
    accuracy = mean(correctness(margins), scores.weights)
    low, high = wilson_interval(accuracy, count)
    with np.errstate(invalid="ignore"):  # a margin that is not a number
        losses = np.logaddexp(0, -margins)
    return {
        "pairs": len(margins),
        "comparisons": count,
        "loss": mean(losses, scores.weights),
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
    }


def _counts(bins: Array, num_bins: int, weights: Array) -> list[float]:
    return np.bincount(bins, weights=weights, minlength=num_bins).tolist()
