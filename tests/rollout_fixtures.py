"""A tiny policy, its roles and a source of rollouts over it, for tests of one or several ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tiny_llama import tiny_llama
from torch import Tensor

from llmtrain.batch import Experience
from llmtrain.config.rl import PolicyConfig, RolloutConfig
from llmtrain.models.adapters.weight_sharing import frozen_copy
from llmtrain.models.wrappers.actor_critic import ActorCritic, ValueHead
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.rewards.batch import Scores
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.experience import Roles
from llmtrain.rollout.local.generator import LocalGenerator
from llmtrain.rollout.sample import Sampler
from llmtrain.rollout.source import RolloutSource

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Asked:
    ids: tuple[int, ...]


class OneRank:
    """The collectives of one process."""

    rank, world_size, device, dtype = 0, 1, CPU, torch.float32

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        return [list(values)]

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        return [values]

    def gathered(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def any(self, flag: bool) -> bool:
        return flag


class InBf16(OneRank):
    dtype = torch.bfloat16


class RankOf(OneRank):
    """One rank's view of two, for what needs no sums."""

    def __init__(self, rank: int) -> None:
        self.rank, self.world_size = rank, 2


class OneOfSeveral(OneRank):
    """A rank that is a thread, and meets the others at a desk where each leaves what it has."""

    def __init__(self, rank: int, meeting: threading.Barrier) -> None:
        self.rank, self.world_size, self._meeting = rank, meeting.parties, meeting

    def _exchanged(self, value: Any) -> list[Any]:
        vars(self._meeting).setdefault("desk", {})[self.rank] = value
        self._meeting.wait()
        left = [vars(self._meeting)["desk"][rank] for rank in range(self.world_size)]
        self._meeting.wait()
        return left

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self._exchanged(list(values)), strict=True)]

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        return self._exchanged(list(values))

    def any(self, flag: bool) -> bool:
        return any(self._exchanged(flag))


@dataclass(frozen=True)
class WithoutModel:
    """An engine whose responses a function of the sample's number makes."""

    response: Callable[[int, Sampling], Generated]
    should_stop: Callable[[], bool] = lambda: False
    gives_values: bool = False

    def current_weights(self) -> AbstractContextManager[None]:
        return nullcontext()

    def generate(
        self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], sampling: Sampling
    ) -> list[Generated] | None:
        return None if self.should_stop() else [self.response(sample, sampling) for sample in sample_ids]


def prompt_at(position: int) -> Asked:
    return Asked(tuple((position * 7 + place) % 20 for place in range(3 + position % 4)))


def score(prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Scores:
    scores = [float(sum(response.response_ids) % 5) for response in responses]
    return Scores(scores, {"sum": scores})


def roles(has_critic: bool = True, moved: float = 0.02) -> tuple[Roles, ActorCritic]:
    model = tiny_llama(vocab_size=24, max_position_embeddings=64, tie_word_embeddings=True)
    reference = frozen_copy(model)
    for parameter in reference.parameters():
        parameter.data += moved * torch.randn_like(parameter)
    module = ActorCritic(wrap_causal_lm(model, "segments", 64, CPU), 0.9, ValueHead(16) if has_critic else None)
    frozen = ActorCritic(CausalLMLoss(wrap_causal_lm(reference, "segments", 64, CPU).model, "segments"), 0.9)
    return Roles(module, frozen), module


def source_of(made: Roles, *, ranks: Any = None, policy: dict[str, Any] | None = None, **changes: Any) -> RolloutSource:
    settings = {"rewards": ["length"], "num_prompts": 6, "max_new_tokens": 5, "ppo_epochs": 2, "minibatches": 2}
    rollout = RolloutConfig.model_validate(
        settings | {k: v for k, v in changes.items() if k in RolloutConfig.model_fields}
    )
    ranks = ranks or OneRank()
    value_head = made.trained.trunk_head if rollout.old_logprobs == "sampler" else None
    local = LocalGenerator(made.trained.model, ranks, changes.get("should_stop", lambda: False), value_head)
    sampler = Sampler(
        generator=changes.get("generator", lambda local: local)(local),
        prompt_at=prompt_at,
        num_prompts=16,
        score=score,
        sampling=Sampling(
            max_new_tokens=5,
            temperature=0.9,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            stop_ids=tuple(changes.get("stop_ids", (1,))),
            seed=3,
        ),
        config=rollout,
        ranks=ranks,
    )
    return RolloutSource(
        made,
        sampler,
        PolicyConfig.model_validate(policy or {}),
        num_steps=changes.get("num_steps", 100),
        microbatch_tokens=changes.get("microbatch_tokens", 24),
        record=changes.get("record", lambda number, rows: None),
        report=lambda line: None,
    )


def take(source: RolloutSource) -> list[Experience]:
    """The present step's microbatches; the source moves on."""
    batches = source.next_step()
    assert batches is not None
    source.advance()
    return batches
