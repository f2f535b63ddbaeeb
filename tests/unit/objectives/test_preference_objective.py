"""Objectives over preferences: pairs and answers by their weights, a step the same however it is split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from llmtrain.batch import IGNORE_INDEX, LabelledAnswers, PreferencePairs, empty_answers, empty_pairs
from llmtrain.config.rl import PREFERENCE_LOSSES, PreferenceConfig, PreferenceLossName
from llmtrain.objectives.kto import KlBatches, KtoObjective
from llmtrain.objectives.preference import PairwisePreference
from llmtrain.objectives.preference_losses import PAIR_LOSS_FUNCTIONS, PreferenceOptions

WEIGHTS = (1.0, 0.5, 0.5)
OPTIONS = PreferenceOptions(beta=0.3, label_smoothing=0.1, gamma=0.5)


class Table(nn.Module):
    """A policy whose logprob of a label depends on the label alone."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, 16))
        self.dropped = nn.Dropout(0.5)

    def forward(self, batch: PreferencePairs | LabelledAnswers) -> SimpleNamespace:
        labels = batch.labels[batch.labels != IGNORE_INDEX]
        return SimpleNamespace(logprobs=self.dropped(self.logits).log_softmax(-1)[labels])


def model() -> Table:
    return Table().eval()


def laid(answers: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Answers of the given tokens, each after a prompt of two."""
    parts = [torch.tensor([IGNORE_INDEX, *answer, IGNORE_INDEX]) for answer in answers]
    return {
        "input_ids": torch.cat([part.clamp(min=0) for part in parts]),
        "labels": torch.cat(parts),
        "position_ids": torch.cat([torch.arange(len(part)) for part in parts]),
        "segment_lengths": tuple(len(part) for part in parts),
        "answer_lengths": tuple(len(answer) for answer in answers),
    }


SIDES = [[3, 4, 5], [6], [7, 8], [2, 2, 2], [15], [0, 1]]
REFERENCE = torch.tensor([-12.0, -2.5, -6.0, -12.0, -2.0, -9.0])


def pairs(which: Sequence[int]) -> PreferencePairs:
    sides = [side for pair in which for side in (2 * pair, 2 * pair + 1)]
    return PreferencePairs(
        **laid([SIDES[side] for side in sides]),
        prefix_lengths=(0,) * len(which),
        weights=torch.tensor([WEIGHTS[pair] for pair in which]),
        margins=None,
        num_pairs=len(which),
        sample_ids=tuple(which),
        ref_logprobs=REFERENCE[sides],
    )


def answers(which: Sequence[int], kl: float | None = 0.4) -> LabelledAnswers:
    return LabelledAnswers(
        **laid([SIDES[side] for side in which]),
        desirable=torch.tensor([side % 2 == 0 for side in which]),
        weights=torch.tensor([WEIGHTS[side // 2] for side in which]),
        ref_logprobs=REFERENCE[list(which)],
        sample_ids=tuple(which),
        kl=None if kl is None else torch.tensor(kl),
    )


def step(objective: Any, batches: Sequence[Any]) -> tuple[dict[str, float], Tensor]:
    """Metrics and gradient of one step."""
    policy = model()
    counts = [objective.counts(batch) for batch in batches]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    shares = []
    for batch in batches:
        share, metrics = objective.loss(policy, batch, totals)
        share.backward()
        shares.append(metrics)
    assert policy.logits.grad is not None
    return {name: sum(float(part[name]) for part in shares) for name in shares[0]}, policy.logits.grad


@pytest.mark.parametrize("loss", list(PAIR_LOSS_FUNCTIONS))
def test_a_step_over_pairs_is_the_same_however_it_is_split(loss: PreferenceLossName) -> None:
    objective = PairwisePreference(loss, OPTIONS)
    whole, gradient = step(objective, [pairs([0, 1, 2])])
    split, split_gradient = step(objective, [pairs([2]), empty_pairs(), pairs([0, 1])])
    assert split == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(split_gradient, gradient)
    assert gradient.abs().sum() > 0


def test_a_step_over_answers_is_the_same_however_it_is_split() -> None:
    objective = KtoObjective(0.3, 0.8, 1.5)
    whole, gradient = step(objective, [answers(range(6))])
    empty = replace(empty_answers(), kl=torch.tensor(0.4))
    split, split_gradient = step(objective, [answers([5, 0]), empty, answers([1, 2, 3, 4])])
    assert split == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(split_gradient, gradient)
    assert gradient.abs().sum() > 0


def test_a_pair_counts_with_its_weight_and_its_answers_tokens() -> None:
    counts = PairwisePreference("dpo", OPTIONS).counts(pairs([0, 1, 2]))
    assert counts == {"tokens": 12, "pairs": 2.0}


def test_metrics_are_means_over_comparisons() -> None:
    logprobs = torch.linspace(-1, 1, 16).log_softmax(-1)
    sums = torch.stack([logprobs[side].sum() for side in SIDES])
    rewards = 0.3 * (sums - REFERENCE)
    margins = rewards[::2] - rewards[1::2]
    weights = torch.tensor(WEIGHTS)
    found, _ = step(PairwisePreference("dpo", OPTIONS), [pairs([0, 1, 2])])
    assert found["loss"] == pytest.approx(float((weights * -nn.functional.logsigmoid(margins)).sum() / 2), abs=1e-6)
    assert found["margin"] == pytest.approx(float((weights * margins).sum() / 2), abs=1e-6)
    assert found["accuracy"] == pytest.approx(float((weights * (margins > 0)).sum() / 2))
    assert found["chosen_reward"] == pytest.approx(float((weights * rewards[::2]).sum() / 2), abs=1e-6)
    assert found["chosen_logprob"] == pytest.approx(float((weights * sums[::2]).sum() / 2), abs=1e-5)


def test_an_answer_is_right_where_it_stands_on_its_side_of_the_kl() -> None:
    ratios = model()(answers([0])).logprobs.sum().item() - REFERENCE[0].item()
    objective = KtoObjective(0.3)
    above, _ = step(objective, [answers([0], kl=ratios - 0.1)])
    below, _ = step(objective, [answers([0], kl=ratios + 0.1)])
    assert (above["accuracy"], below["accuracy"]) == (1, 0)


@pytest.mark.parametrize("loss", [name for name in PAIR_LOSS_FUNCTIONS if not PREFERENCE_LOSSES[name].needs_reference])
def test_a_loss_without_reference_needs_no_logprobs_of_it(loss: PreferenceLossName) -> None:
    found, _ = step(PairwisePreference(loss, OPTIONS), [replace(pairs([0, 1]), ref_logprobs=None)])
    assert math.isfinite(found["loss"])


def test_options_that_are_not_given_are_those_of_the_paper() -> None:
    assert PreferenceConfig(loss="simpo").options() == {"beta": 2.0, "gamma": 1.0}
    assert PreferenceConfig(loss="simpo", beta=2.5, gamma=0).options() == {"beta": 2.5, "gamma": 0}
    assert PreferenceConfig(loss="kto", undesirable_weight=1.5).options() == {
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.5,
    }


@pytest.mark.parametrize("loss", list(PREFERENCE_LOSSES))
def test_the_configuration_and_the_losses_agree(loss: PreferenceLossName) -> None:
    assert loss in get_args(PreferenceLossName)
    options = {name: default or 0.1 for name, default in PREFERENCE_LOSSES[loss].options.items()}
    if loss == "kto":
        assert KtoObjective(**options).beta == options["beta"]
    else:
        assert loss in PAIR_LOSS_FUNCTIONS and PreferenceOptions(**options).beta == options["beta"]


def test_every_preference_loss_has_its_facts() -> None:
    assert set(get_args(PreferenceLossName)) == set(PREFERENCE_LOSSES) == {*PAIR_LOSS_FUNCTIONS, "kto"}


class Ranks:
    """One of several processes: what the others sum up is given."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, others: Sequence[float] = (0.0, 0.0)) -> None:
        self.others = others

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return [value + other for value, other in zip(values, self.others, strict=True)]

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


class Stored:
    """A source of one step."""

    def __init__(self, batches: list[LabelledAnswers]) -> None:
        self.batches: list[LabelledAnswers] | None = batches

    def next_step(self) -> list[LabelledAnswers] | None:
        return self.batches

    def advance(self) -> None:
        self.batches = None

    def load_state_dict(self, state: Any) -> None:
        pass

    epoch = 0.0

    def metrics(self) -> dict[str, float]:
        return {}


def kl_of(batches: list[LabelledAnswers], others: Sequence[float] = (0.0, 0.0)) -> float:
    """The KL that a step's batches carry, mismatched answers being the batch's own."""
    source: Any = Stored(batches)
    given = KlBatches(source, lambda batch: batch, model(), Ranks(others)).next_step()
    assert given is not None
    assert len({float(batch.kl) for batch in given if batch.kl is not None}) == 1
    return float(given[0].kl)  # type: ignore[arg-type]


def ratio_sums(which: Sequence[int]) -> tuple[float, float]:
    batch = answers(which)
    ratios = torch.stack([part.sum() for part in model()(batch).logprobs.split(batch.answer_lengths)])
    ratios = ratios.detach() - REFERENCE[list(which)]
    return float((batch.weights * ratios).sum()), float(batch.weights.sum())


def test_the_kl_is_the_mean_log_ratio_of_the_whole_step_over_all_ranks() -> None:
    moved, weight = ratio_sums(range(6))
    assert moved > 0
    assert kl_of([answers(range(6), None)]) == pytest.approx(moved / weight, rel=1e-5)
    assert kl_of([answers([1, 2], None), answers([0, 3, 4, 5], None)]) == pytest.approx(moved / weight, rel=1e-5)
    shared = kl_of([answers([1, 2], None), empty_answers()], others=ratio_sums([0, 3, 4, 5]))
    assert shared == pytest.approx(moved / weight, rel=1e-5)


def test_a_negative_kl_counts_as_none() -> None:
    assert ratio_sums([1])[0] < 0
    assert kl_of([answers([1], None)]) == 0


def test_the_kl_is_taken_without_dropout_and_training_goes_on() -> None:
    policy = Table().train()
    source: Any = Stored([answers(range(6), None)])
    given = KlBatches(source, lambda batch: batch, policy, Ranks()).next_step()
    moved, weight = ratio_sums(range(6))
    assert given is not None and float(given[0].kl) == pytest.approx(moved / weight, rel=1e-5)  # type: ignore[arg-type]
    assert policy.training


def test_a_source_that_is_finished_stays_so() -> None:
    source: Any = Stored([answers([0], None)])
    batches = KlBatches(source, lambda batch: batch, model(), Ranks())
    assert batches.next_step() is not None
    batches.advance()
    assert batches.next_step() is None and batches.next_step() is None


def test_the_kl_of_a_step_is_computed_once_until_the_source_moves() -> None:
    policy, calls = model(), list[int]()
    policy.register_forward_pre_hook(lambda *_: calls.append(1))
    batches = KlBatches(Stored([answers([0], None)]), lambda batch: batch, policy, Ranks())  # type: ignore[arg-type]
    assert batches.next_step() is batches.next_step() and len(calls) == 1
    batches.load_state_dict({})  # other weights may have come with it
    assert batches.next_step() is not None and len(calls) == 2
