"""What separates good settings from bad: a small decision tree in words, and the importance of each key.

Runs that were stopped early count with their last evaluation; runs that failed have no score and are left out. A key
that a setting does not name has the configuration's own value. Scores far worse than most are bounded, so that one run
that diverged does not decide every split; the numbers shown are means of the scores themselves.

A tree can always be grown, on noise too. So each split must be better than chance: than the best split of the same
trials with their scores shuffled, in 19 of 20 shuffles.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from llmtrain.config.help import yaml_scalar
from llmtrain.system.finite import is_number
from llmtrain.tune.sweep.space import Dimension
from llmtrain.tune.sweep.study import TrialRecord
from llmtrain.tune.sweep.suggest import quiet
from llmtrain.tune.sweep.words import number_text

MAX_DEPTH = 3
LEAST_TRIALS = 6  # with fewer, any tree fits
SHUFFLES, CHANCE = 199, 0.05  # a split is kept if so few shuffles of the scores have as good a one
FEW_TRIALS = 20  # importances of fewer are a hint


@dataclass(frozen=True)
class Feature:
    """A column that a tree may split: a number, or whether a key has one of its choices."""

    key: str
    choice: str = ""  # "": the key's number
    is_log: bool = False
    is_int: bool = False

    def condition(self, threshold: float, is_above: bool) -> tuple[str, str, float]:
        """(key, relation, value) of one side of a split."""
        if self.choice:
            return self.key, "is" if is_above else "is not", 0.0
        value = 10**threshold if self.is_log else threshold
        return self.key, "above" if is_above else "at most", math.floor(value) if self.is_int else value


@dataclass(frozen=True)
class Node:
    """A node of the tree: a group of trials, and the split of it, if there is one."""

    trials: Sequence[TrialRecord]
    path: Sequence[tuple[Feature, float, bool]] = ()  # of each split that leads here: threshold, whether above it
    children: Sequence[Node] = field(default_factory=tuple)

    @property
    def mean(self) -> float:
        return statistics.fmean(trial.score for trial in self.trials if trial.score is not None)

    def leaves(self) -> list[Node]:
        """The groups that are not split further."""
        return [leaf for child in self.children for leaf in child.leaves()] if self.children else [self]


def scored(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that have a finite score."""
    return [record for record in records if record.score is not None and math.isfinite(record.score)]


def value_of(record: TrialRecord, dimension: Dimension, given: Mapping[str, Any]) -> Any:
    """The value of a key in a trial; None: it did not vary there, as its condition did not hold."""
    if dimension.key in record.values:
        return record.values[dimension.key]
    beside = {**{key: given[key] for key in dimension.when if key in given}, **record.values}
    return given[dimension.key] if dimension.holds(beside) else None


def tree_of(
    records: Sequence[TrialRecord], space: Sequence[Dimension], given: Mapping[str, Any], maximize: bool = False
) -> Node | None:
    """A decision tree of at most three levels; None: too few trials, or nothing separates them."""
    trials = scored(records)
    if len(trials) < LEAST_TRIALS:
        return None
    features, matrix = _matrix(trials, space, given)
    if not features:
        return None
    node = _grown(trials, features, matrix, _bounded(trials, maximize), ())
    return node if node.children else None


def sentences(tree: Node, metric: str, maximize: bool) -> list[str]:
    """A line for each group of the tree, the best first: `optim.lr above 0.0003: mean eval_loss 2.9 (4 runs)`."""
    sign = -1 if maximize else 1
    return [
        f"{conditions_text(leaf)}: mean {metric} {leaf.mean:.4g} "
        f"({len(leaf.trials)} {'run' if len(leaf.trials) == 1 else 'runs'})"
        for leaf in sorted(tree.leaves(), key=lambda leaf: sign * leaf.mean)
    ]


def split_text(node: Node) -> str:
    """The condition of the last split that leads to a node: `optim.lr above 0.0003`; "" of the root."""
    if not node.path:
        return ""
    feature, threshold, is_above = node.path[-1]
    key, relation, value = feature.condition(threshold, is_above)
    return f"{key} {relation} {feature.choice or number_text(value)}"


def conditions_text(node: Node) -> str:
    """All conditions of a group, those of one key together."""
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    choices: dict[str, list[str]] = {}
    for feature, threshold, is_above in node.path:
        key, relation, value = feature.condition(threshold, is_above)
        if feature.choice:
            choices.setdefault(key, []).append(f"{relation} {feature.choice}")
        elif is_above:
            lows[key] = max(value, lows.get(key, -math.inf))
        else:
            highs[key] = min(value, highs.get(key, math.inf))
    parts = []
    for key in dict.fromkeys(feature.key for feature, _, _ in node.path):
        if key in choices:
            parts.append(f"{key} {' and '.join(choices[key])}")
        elif key in lows and key in highs:
            parts.append(f"{key} between {number_text(lows[key])} and {number_text(highs[key])}")
        elif key in lows:
            parts.append(f"{key} above {number_text(lows[key])}")
        else:
            parts.append(f"{key} at most {number_text(highs[key])}")
    return " and ".join(parts)


def importances(
    records: Sequence[TrialRecord], space: Sequence[Dimension], given: Mapping[str, Any], maximize: bool = False
) -> dict[str, float]:
    """Key -> its share of the variance that the keys explain, by Optuna's fANOVA; empty: too few trials."""
    import optuna

    trials = scored(records)
    varied = [d for d in space if len({yaml_scalar(value_of(trial, d, given)) for trial in trials}) > 1]
    varied = [d for d in varied if all(value_of(trial, d, given) is not None for trial in trials)]
    if len(trials) < LEAST_TRIALS or len({trial.score for trial in trials}) < 2 or not varied:
        return {}
    distributions = {d.key: _distribution(d, [value_of(trial, d, given) for trial in trials]) for d in varied}
    with quiet():
        study = optuna.create_study()
        for trial, score in zip(trials, _bounded(trials, maximize), strict=True):
            params = {d.key: _param(d, value_of(trial, d, given)) for d in varied}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=float(score)))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}


def _grown(
    trials: Sequence[TrialRecord],
    features: Sequence[Feature],
    matrix: ndarray,
    scores: ndarray,
    path: tuple[tuple[Feature, float, bool], ...],
) -> Node:
    """A node of these trials, split further where a split is better than chance."""
    split = _split(matrix, scores, least=max(2, len(trials) // 8)) if len(path) < MAX_DEPTH else None
    if split is None:
        return Node(trials, path)
    column, threshold = split
    is_above = matrix[:, column] > threshold
    children = tuple(
        _grown(
            [trial for trial, is_in in zip(trials, side, strict=True) if is_in],
            features,
            matrix[side],
            scores[side],
            (*path, (features[column], threshold, above)),
        )
        for side, above in ((~is_above, False), (is_above, True))
    )
    return Node(trials, path, children)


def _split(matrix: ndarray, scores: ndarray, least: int) -> tuple[int, float] | None:
    """(column, threshold) of the best split into groups of at least `least`; None: there is none better than chance."""
    from sklearn.tree import DecisionTreeRegressor

    if len(scores) < 2 * least or np.ptp(scores) == 0:
        return None
    stump = DecisionTreeRegressor(max_depth=1, min_samples_leaf=least, random_state=0)
    columns = np.ascontiguousarray(matrix, dtype=np.float32)  # as scikit-learn wants them, so that it checks nothing

    def gain(shuffled: ndarray) -> float:
        tree = stump.fit(columns, shuffled, check_input=False).tree_
        if tree.node_count == 1:
            return 0.0
        return float(tree.impurity[0] - np.dot(tree.n_node_samples[1:], tree.impurity[1:]) / len(shuffled))

    found = gain(scores)
    if found <= 0:
        return None
    column, threshold = int(stump.tree_.feature[0]), float(stump.tree_.threshold[0])
    generator = np.random.default_rng(0)
    as_good = sum(gain(generator.permutation(scores)) >= found for _ in range(SHUFFLES))
    return (column, threshold) if (as_good + 1) / (SHUFFLES + 1) <= CHANCE else None


def _matrix(
    trials: Sequence[TrialRecord], space: Sequence[Dimension], given: Mapping[str, Any]
) -> tuple[list[Feature], ndarray]:
    """The columns that a tree may split, and their values; -1 where a key did not vary."""
    features: list[Feature] = []
    columns: list[list[float]] = []
    for dimension in space:
        values = [value_of(trial, dimension, given) for trial in trials]
        if all(value is None or is_number(value) for value in values):
            features.append(Feature(dimension.key, is_log=dimension.is_log, is_int=dimension.is_int))
            columns.append([_coordinate(dimension, value) for value in values])
        else:
            labels = [yaml_scalar(value) for value in values]
            for label in dict.fromkeys(labels):
                features.append(Feature(dimension.key, choice=label))
                columns.append([float(each == label) for each in labels])
    return features, np.array(columns, dtype=np.float64).T


def _coordinate(dimension: Dimension, value: Any) -> float:
    if value is None:
        return -1.0
    return math.log10(value) if dimension.is_log else float(value)


def _distribution(dimension: Dimension, values: Sequence[Any]) -> Any:
    """The distribution of a key, widened to what was tried besides."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not all(is_number(value) for value in values) or dimension.choices:
        return CategoricalDistribution(list(dict.fromkeys([*dimension.labels, *map(yaml_scalar, values)])))
    low, high = min(dimension.low, *values), max(dimension.high, *values)
    return FloatDistribution(low, high, log=dimension.is_log)


def _param(dimension: Dimension, value: Any) -> Any:
    return yaml_scalar(value) if dimension.choices or not is_number(value) else float(value)


def _bounded(trials: Sequence[TrialRecord], maximize: bool) -> ndarray:
    """Scores of which less is better; none is further above their upper quartile than the median is above the least."""
    scores = (-1 if maximize else 1) * np.array([trial.score for trial in trials], dtype=np.float64)
    middle, high = np.quantile(scores, [0.5, 0.75])
    return np.minimum(scores, high + (middle - scores.min()))
