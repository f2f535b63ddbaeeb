"""What the text of a policy's sampled responses shows: repetition, sameness, and whether length explains the score."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.runs.rows import Row
from llmtrain.statistics.weighted import rank_correlation

WINDOW = 0.1
"""The first and the last part of a run's rollouts that are compared."""
FEW_WORDS = 8
"""Responses of fewer words have no repetition that is worth a number."""
GRAM = 3


@dataclass(frozen=True)
class Responses:
    """The samples of a few neighbouring rollouts."""

    rollouts: tuple[int, int]  # the first and the last
    rows: Sequence[Row]


def first_and_last(samples: Sequence[Row]) -> tuple[Responses, Responses] | None:
    """The samples of the first and of the last rollouts; None if there are not two rollouts."""
    by_rollout: dict[int, list[Row]] = defaultdict(list)
    for row in samples:
        if isinstance(row.get("rollout"), int) and isinstance(row.get("response"), str):
            by_rollout[row["rollout"]].append(row)
    numbers = sorted(by_rollout)
    if len(numbers) < 2:
        return None
    size = max(1, round(len(numbers) * WINDOW))
    ends = numbers[:size], numbers[-size:]
    first, last = (Responses((end[0], end[-1]), [row for n in end for row in by_rollout[n]]) for end in ends)
    return first, last


def repeated_share(responses: Responses) -> float:
    """Share of groups of three words that occurred before in their response, over all; NaN if responses are short."""
    repeated = total = num_words = 0
    for row in responses.rows:
        words = row["response"].split()
        num_words += len(words)
        grams = [tuple(words[place : place + GRAM]) for place in range(len(words) - GRAM + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total and num_words >= FEW_WORDS * len(responses.rows) else math.nan


def distinct_share(responses: Responses) -> float:
    """Share of responses that no earlier one to the same prompt in the same rollout equals; NaN with one each."""
    groups = list(_by_prompt(responses).values())
    total = sum(map(len, groups))
    if total == len(groups):
        return math.nan
    return sum(len({row["response"] for row in group}) for group in groups) / total


def length_correlation(responses: Responses) -> tuple[float, int]:
    """Spearman's correlation of score and characters, and how many responses it is of; NaN if it has no meaning.

    If a prompt has several responses, each is compared with their mean: a long prompt does not count as a long answer.
    """
    lengths, scores = [], []
    for group in _by_prompt(responses).values():
        found = [(len(row["response"]), row["score"]) for row in group if isinstance(row.get("score"), (int, float))]
        if not found:
            continue
        columns = np.array(found, dtype=float)
        if len(found) > 1:
            columns -= columns.mean(0)
        lengths += columns[:, 0].tolist()
        scores += columns[:, 1].tolist()
    values = np.array(lengths).round(9), np.array(scores).round(9)
    return rank_correlation(*values, np.ones(len(lengths))), len(lengths)


def _by_prompt(responses: Responses) -> dict[tuple[int, str], list[Row]]:
    groups: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in responses.rows:
        groups[row["rollout"], str(row.get("prompt"))].append(row)
    return groups
