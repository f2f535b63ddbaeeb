"""Held-out losses before and after training: one pass over the packs, and a failure leaves no rank waiting."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from thread_ranks import on_ranks
from torch import nn

from llmtrain.batch import LabelledAnswers
from llmtrain.eval.before_after.held_out import DESIRABLE, UNDESIRABLE, HeldOutItems, held_out_labelled
from llmtrain.eval.before_after.together import Unmeasured
from llmtrain.eval.tasks.results import NATS_PER_TOKEN, ItemResult

NUM_PACKS = 5


class Numbers(list[int]):
    """A microbatch: the numbers of its packs."""

    def to(self, device: Any) -> Numbers:
        return self


def plan(num_packs: int = NUM_PACKS) -> Any:
    """Packs of one document each, one in a microbatch."""
    return SimpleNamespace(
        num_eval_packs=num_packs,
        packs_per_microbatch=1,
        eval_pack=lambda number: SimpleNamespace(segment_lengths=[1]),
    )


def held_out(ranks: Any, *, failing: int | None, num_packs: int = NUM_PACKS) -> Any:
    """What a rank gets if the forward fails on one of them; every forward is a collective."""

    def items_of(module: nn.Module, batch: Numbers) -> Iterator[ItemResult]:
        if ranks.rank == failing:
            raise RuntimeError("out of memory")
        ranks.any(False)
        for number in batch:
            yield ItemResult("held_out", f"key {number}", "held out", {"nats_per_token": 1.0, "tokens": 1.0})

    def collate(packs: Any) -> Any:
        return Numbers(number for number, _ in packs)

    measured = HeldOutItems(plan(num_packs), ranks, collate, items_of, {"held_out": [NATS_PER_TOKEN]})
    (result,) = measured(nn.Identity(), lambda: False)
    return result


def test_a_forward_that_fails_on_one_of_several_ranks_raises_its_own_error() -> None:
    _, failed = on_ranks(2, lambda ranks: held_out(ranks, failing=1))
    assert isinstance(failed, RuntimeError) and str(failed) == "out of memory"


def test_a_forward_that_fails_in_one_process_is_not_measured() -> None:
    (failed,) = on_ranks(1, lambda ranks: held_out(ranks, failing=0))
    assert isinstance(failed, Unmeasured) and str(failed) == "out of memory"


@pytest.mark.parametrize("num_packs", [1, 2, NUM_PACKS])
def test_ranks_without_a_pack_compute_along(num_packs: int) -> None:
    main, *others = on_ranks(3, lambda ranks: held_out(ranks, failing=None, num_packs=num_packs))
    assert sorted(item.item for item in main.items) == [f"key {number}" for number in range(num_packs)]
    assert all(not other.items for other in others)


def test_answers_of_both_labels_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def collate(packs: Any) -> LabelledAnswers:
        """Of each pack a desirable answer of one token and an undesirable one of two."""
        count = len(packs)
        numbers = torch.tensor([number for number, _ in packs for _ in range(3)])
        desirable = torch.tensor([True, False] * count)
        ids = tuple(number for number, _ in packs)
        weights = torch.ones(2 * count)
        return LabelledAnswers(numbers, numbers, numbers, (1, 2) * count, (1, 2) * count, desirable, weights, None, ids)

    class Counted(nn.Module):
        calls = 0

        def forward(self, batch: LabelledAnswers) -> SimpleNamespace:
            self.calls += 1
            return SimpleNamespace(logprobs=-torch.ones(len(batch.labels)))

    monkeypatch.setattr("llmtrain.eval.before_after.held_out.collate_answers", collate)
    model = Counted()

    def every(ranks: Any) -> Any:
        measured = held_out_labelled(plan(), ranks).values()
        return [result for each in measured for result in each(model, lambda: False) or ()]

    (results,) = on_ranks(1, every)
    assert model.calls == NUM_PACKS
    assert [(each.task, len(each.items)) for each in results] == [(DESIRABLE, NUM_PACKS), (UNDESIRABLE, NUM_PACKS)]
    for each, nats in zip(results, (1.0, 2.0), strict=True):
        assert {item.values["nats_per_token"] for item in each.items} == {nats}
