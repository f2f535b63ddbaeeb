"""The local engine: which weights it asks for, in which precision it samples, and when it gives values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tiny_generation import PROMPTS, tiny
from torch import Tensor, nn

from llmtrain.models.wrappers.actor_critic import ValueHead
from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.local.generator import LocalGenerator


class OneRank:
    """One process, which keeps what was gathered on it."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.whole: set[nn.Parameter] = set()

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        self.whole = set(module.parameters())
        yield
        self.whole = set()

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        raise NotImplementedError

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        raise NotImplementedError

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def any(self, flag: bool) -> bool:
        raise NotImplementedError


def test_the_weights_of_policy_and_value_head_are_gathered_while_it_samples() -> None:
    policy, head, ranks = tiny(), ValueHead(32), OneRank()
    with LocalGenerator(policy, ranks, lambda: False, head).current_weights():
        assert ranks.whole == {*policy.parameters(), *head.parameters()}
    assert not ranks.whole


def test_it_samples_in_the_precision_of_training() -> None:
    precisions: set[bool] = set()
    policy = tiny()
    policy.register_forward_pre_hook(lambda *_: precisions.add(torch.is_autocast_enabled("cpu")))
    generator = LocalGenerator(policy, OneRank(torch.bfloat16), lambda: False)
    assert generator.generate(PROMPTS[:1], [0], Sampling(2)) is not None
    assert precisions == {True}


def test_a_value_head_gives_a_value_for_each_token_and_changes_none() -> None:
    policy = tiny()
    plain, valued = (LocalGenerator(policy, OneRank(), lambda: False, head) for head in (None, ValueHead(32)))
    assert (plain.gives_values, valued.gives_values) == (False, True)
    without = plain.generate(PROMPTS, range(len(PROMPTS)), Sampling(6))
    responses = valued.generate(PROMPTS, range(len(PROMPTS)), Sampling(6))
    assert without is not None and responses is not None
    assert [one.response_ids for one in responses] == [one.response_ids for one in without]
    assert {len(one.values) - len(one.response_ids) for one in responses} == {0}
    assert not any(one.values for one in without)


def test_it_stops_when_asked_to() -> None:
    assert LocalGenerator(tiny(), OneRank(), lambda: True).generate(PROMPTS[:1], [0], Sampling(2)) is None
