"""Held-out losses before and after training: one pass over the packs, and a failure leaves no rank waiting."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from thread_ranks import on_ranks
from torch import nn

from llmtrain.eval.before_after.held_out import HeldOutItems
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
        config=SimpleNamespace(eval=SimpleNamespace(before_after=100)),
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

    measured = HeldOutItems(plan(num_packs), ranks, collate, items_of, "held_out", [NATS_PER_TOKEN])
    return measured(nn.Identity(), lambda: False)


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
