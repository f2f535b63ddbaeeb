"""Rollouts as a batch source: ratios of 1, nothing that depends on packs or ranks, state that goes on exactly."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pytest
import torch
from rollout_fixtures import InBf16, OneOfSeveral, RankOf, roles, source_of, take
from torch import Tensor

from llmtrain.batch import Experience, SamplingMask
from llmtrain.config.rl import PolicyConfig
from llmtrain.models.adapters.weight_sharing import frozen_copy
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.protocols import Interrupted
from llmtrain.rollout.engine import Generated, Generator, Sampling
from llmtrain.rollout.packing import Episode, group_episodes, pack_episodes

FILTERS = [{}, {"top_k": 4}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.7}]


@pytest.mark.parametrize("filters", FILTERS)
def test_on_the_first_minibatch_every_ratio_is_exactly_one(filters: dict[str, Any]) -> None:
    made, module = roles()
    first = source_of(made, **filters).next_step()
    assert first and sum(len(batch.response_lengths) for batch in first) == 3
    module.train()
    for batch in first:
        assert torch.equal(module(batch).logprobs, batch.old_logprobs)


@pytest.mark.parametrize("filters", FILTERS)
def test_old_logprobs_are_those_that_the_tokens_were_drawn_with(filters: dict[str, Any]) -> None:
    made, _ = roles()
    seen: list[Any] = []
    source = source_of(made, record=lambda number, rows: seen.extend(rows), minibatches=1, **filters)
    batches = source.next_step()
    assert batches is not None
    by_sample = {row["sample"]: row["response"].logprobs for row in seen}
    for batch in batches:
        for sample, logprobs in zip(
            batch.sample_ids, batch.old_logprobs.split(list(batch.response_lengths)), strict=True
        ):
            assert logprobs.tolist() == pytest.approx(by_sample[sample], abs=1e-5)
    assert source.metrics()["rollout_logprob_difference"] <= source.metrics()["rollout_logprob_difference_max"] < 1e-5


def test_a_policy_that_moved_is_read_among_what_its_tokens_were_drawn_among() -> None:
    made, module = roles()
    batches = source_of(made, minibatches=1, top_p=0.5).next_step()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for batch in batches or ():
            assert batch.sampling_mask is not None
            outputs, whole = module(batch), module(replace(batch, sampling_mask=None))
            assert bool(outputs.logprobs.isfinite().all()) and bool((outputs.logprobs >= whole.logprobs).all())


def counting(module: torch.nn.Module) -> list[int]:
    """The tokens of each call to a module from now on."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].num_tokens))
    return calls


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}])
def test_logprobs_of_generation_spare_a_read_and_give_ratios_within_the_difference(filters: dict[str, Any]) -> None:
    made, module = roles(has_critic=False)
    calls = counting(module)
    policy, settings = {"advantage": "rloo"}, {"samples_per_prompt": 2, "minibatches": 1, "microbatch_tokens": 32}
    source = source_of(made, policy=policy, old_logprobs="sampler", **settings, **filters)
    batches = source.next_step()
    assert batches and len(batches) > 1 and len(calls) == 1
    with torch.no_grad():
        moved = torch.cat([module(batch).logprobs - batch.old_logprobs for batch in batches]).abs()
    assert 0 < float(moved.max()) < 1e-5
    assert source.metrics()["rollout_logprob_difference"] <= source.metrics()["rollout_logprob_difference_max"] < 1e-5


@dataclass(frozen=True)
class Shifted:
    """Another engine, whose logprobs are not those of training."""

    local: Generator
    gives_values: bool = True

    def current_weights(self) -> AbstractContextManager[None]:
        return self.local.current_weights()

    def generate(
        self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], sampling: Sampling
    ) -> list[Generated] | None:
        responses = self.local.generate(prompts, sample_ids, sampling)
        return [replace(one, logprobs=[0.25 + logprob for logprob in one.logprobs]) for one in responses or ()]


def test_the_difference_between_the_logprobs_of_an_engine_and_of_training_is_logged() -> None:
    source = source_of(roles()[0], generator=Shifted, old_logprobs="sampler", minibatches=1)
    source.next_step()
    assert source.metrics()["rollout_logprob_difference"] == pytest.approx(0.25, abs=1e-5)
    assert source.metrics()["rollout_logprob_difference_max"] == pytest.approx(0.25, abs=1e-5)


@dataclass(frozen=True)
class WithoutValues(Shifted):
    """Another engine, which has no value head."""

    gives_values: bool = False

    def generate(
        self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int], sampling: Sampling
    ) -> list[Generated] | None:
        responses = self.local.generate(prompts, sample_ids, sampling)
        return [replace(one, values=[]) for one in responses or ()]


def test_values_that_an_engine_does_not_give_are_read() -> None:
    made, module = roles()
    assert module.value_head is not None
    torch.nn.init.normal_(module.value_head.weight)
    batches = source_of(made, generator=WithoutValues, old_logprobs="sampler", minibatches=1).next_step()
    assert batches
    for batch in batches:
        with torch.no_grad():
            assert torch.equal(module(batch).values, batch.old_values)


def test_generation_reads_the_values_of_a_head_on_its_trunk() -> None:
    made, module = roles()
    assert module.value_head is not None
    torch.nn.init.normal_(module.value_head.weight)
    calls = counting(module)
    source = source_of(made, old_logprobs="sampler", minibatches=1)
    batches = source.next_step()
    assert batches and len(calls) == 1 and calls[0] < sum(map(len, (batch.input_ids for batch in batches)))
    with torch.no_grad():
        outputs = [module(batch) for batch in batches]
    for batch, one in zip(batches, outputs, strict=True):
        assert batch.old_values is not None and float(batch.old_values.std()) > 0.1
        torch.testing.assert_close(one.values, batch.old_values, rtol=0, atol=1e-5)


def test_a_critic_of_its_own_is_read_without_the_policy() -> None:
    made, module = roles()
    assert module.value_head is not None
    module.critic = frozen_copy(module.model).base_model
    torch.nn.init.normal_(module.value_head.weight)
    calls = counting(module)
    batches = source_of(made, old_logprobs="sampler", minibatches=1).next_step()
    assert batches and len(calls) == 1
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(module(batch).values, batch.old_values, rtol=0, atol=0)


def test_how_much_of_the_returns_the_critic_foresees_is_told() -> None:
    made, module = roles()
    assert module.value_head is not None
    torch.nn.init.normal_(module.value_head.weight, std=0.3)
    source = source_of(made, minibatches=1)
    batches = source.next_step() or []
    returns, values = (
        torch.cat([getattr(batch, name) for batch in batches]).double() for name in ("returns", "old_values")
    )
    expected = float(1 - (returns - values).var() / returns.var())
    assert abs(expected) > 0.01
    assert source.metrics()["rollout_explained_variance"] == pytest.approx(expected, abs=1e-6)
    without = source_of(roles(False)[0], policy={"advantage": "rloo"}, samples_per_prompt=2, minibatches=1)
    without.next_step()
    assert "rollout_explained_variance" not in without.metrics()


def test_normalised_scores_are_trained_on_and_plain_ones_are_told() -> None:
    seen: list[Any] = []
    policy = {"advantage": "dr_grpo", "kl_coef": 0.0}
    changes = {"samples_per_prompt": 2, "minibatches": 1, "score_normalise": True}
    source = source_of(roles(False)[0], policy=policy, record=lambda number, rows: seen.extend(rows), **changes)
    source.next_step()
    plain = torch.tensor([row["score"] for row in seen], dtype=torch.float64)
    shaped = torch.tensor([row["shaped_score"] for row in seen], dtype=torch.float64)
    torch.testing.assert_close(shaped, (plain - plain.mean()) / plain.std(correction=0), rtol=0, atol=1e-5)
    assert source.metrics()["rollout_score"] == pytest.approx(float(plain.mean()))
    assert source.metrics()["rollout_shaped_score"] == pytest.approx(0, abs=1e-6)


def test_every_episode_comes_once_a_pass_and_each_pass_in_another_order() -> None:
    source = source_of(roles()[0], microbatch_tokens=1)
    passes = []
    for _ in range(2):
        steps = [take(source) for _ in range(2)]
        passes.append([sample for step in steps for batch in step for sample in batch.sample_ids])
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(6))
    assert passes[0] != passes[1]


Step = list[list[tuple[int, ...]]]
"""The samples of each microbatch of a rank, of each rank."""


def steps_of(world_size: int, num_steps: int, **changes: Any) -> list[Step]:
    """The first steps of as many ranks."""

    def run(rank: int) -> list[list[tuple[int, ...]]]:
        source = source_of(made[rank], ranks=OneOfSeveral(rank, meeting), **changes)
        return [[batch.sample_ids for batch in take(source)] for _ in range(num_steps)]

    made, meeting = [roles()[0] for _ in range(world_size)], threading.Barrier(world_size, timeout=30)
    with ThreadPoolExecutor(world_size) as pool:
        return [list(step) for step in zip(*pool.map(run, range(world_size)), strict=True)]


def samples_of(steps: Sequence[Step]) -> list[list[int]]:
    """The samples of each step, over all ranks."""
    return [sorted(sample for rank in step for batch in rank for sample in batch) for step in steps]


@pytest.mark.parametrize("minibatches", [2, 6])
@pytest.mark.parametrize("microbatch_tokens", [1, 16, 64])
def test_steps_do_not_depend_on_the_packs(microbatch_tokens: int, minibatches: int) -> None:
    settings = {"samples_per_prompt": 2, "minibatches": minibatches}
    steps = samples_of(steps_of(1, 2 * minibatches, microbatch_tokens=microbatch_tokens, **settings))
    assert [len(step) for step in steps] == [12 // minibatches] * (2 * minibatches)
    for one_pass in (steps[:minibatches], steps[minibatches:]):
        assert sorted(chain.from_iterable(one_pass)) == list(range(12))
    assert steps == samples_of(steps_of(1, 2 * minibatches, microbatch_tokens=24, **settings))


@pytest.mark.parametrize("world_size", [2, 3])
def test_steps_do_not_depend_on_the_ranks(world_size: int) -> None:
    settings = {"num_prompts": 7, "samples_per_prompt": 2, "minibatches": 3}
    steps = steps_of(world_size, 6, **settings)
    assert samples_of(steps) == samples_of(steps_of(1, 6, **settings))
    assert all(len({len(rank) for rank in step}) == 1 for step in steps)


@pytest.mark.parametrize("microbatch_tokens", [1, 24, 1000])
def test_advantages_do_not_depend_on_the_packs(microbatch_tokens: int) -> None:
    def by_sample(tokens: int) -> dict[int, Tensor]:
        batches = source_of(roles()[0], microbatch_tokens=tokens, minibatches=1).next_step()
        assert batches is not None
        return {
            sample: part
            for batch in batches
            for sample, part in zip(batch.sample_ids, batch.advantages.split(list(batch.response_lengths)), strict=True)
        }

    wanted = by_sample(48)
    for sample, advantages in by_sample(microbatch_tokens).items():
        torch.testing.assert_close(advantages, wanted[sample], rtol=0, atol=1e-5)


def test_the_ranks_share_the_prompts_and_draw_what_one_rank_draws() -> None:
    policy = {"advantage": "rloo", "kl_coef": 0.05}
    drawn: dict[int, tuple[int, ...]] = {}

    def keep(number: int, rows: Any) -> None:
        for row in rows:
            assert row["sample"] not in drawn
            drawn[row["sample"]] = tuple(row["response"].response_ids)

    for rank in (0, 1):
        source_of(roles(False)[0], ranks=RankOf(rank), policy=policy, samples_per_prompt=2, record=keep).next_step()
    both = dict(drawn)
    drawn.clear()
    source_of(roles(False)[0], policy=policy, samples_per_prompt=2, record=keep).next_step()
    assert both == drawn and len(drawn) == 12


@pytest.mark.parametrize("advantage", ["gae", "group_mean", "rloo", "reinforce_pp"])
def test_a_rank_without_a_prompt_keeps_up_with_the_others(advantage: str) -> None:
    def steps(rank: int, meeting: threading.Barrier) -> list[list[int]]:
        ranks, policy = OneOfSeveral(rank, meeting), {"advantage": advantage}
        source = source_of(made[rank], ranks=ranks, policy=policy, num_prompts=1, samples_per_prompt=2)
        return [[len(batch.response_lengths) for batch in take(source)] for _ in range(3)]

    made = [roles(advantage == "gae")[0] for _ in range(2)]
    meeting = threading.Barrier(2, timeout=30)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(steps, range(2), [meeting] * 2))
    assert found == [[[2]] * 3, [[0]] * 3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_p": 0.8},
        {"score_normalise": True},
        {"mask_truncated": True, "stop_ids": range(8), "top_p": 0.9},
        {"policy": {"advantage": "rloo"}, "samples_per_prompt": 2, "dynamic_sampling": True, "old_logprobs": "sampler"},
    ],
)
def test_a_source_goes_on_from_its_state_as_if_it_had_not_stopped(changes: dict[str, Any]) -> None:
    made, _ = roles(has_critic="policy" not in changes)
    alone, stopped, resumed = (source_of(made, minibatches=3, **changes) for _ in range(3))
    for _ in range(4):
        take(alone), take(stopped)
    resumed.load_state_dict(stopped.state_dict())
    for _ in range(5):  # the rest of this rollout, and into the next one
        for one, other in zip(take(alone), take(resumed), strict=True):
            assert_same(one, other)
    assert without_seconds(alone.metrics()) == without_seconds(resumed.metrics())
    assert alone.epoch == resumed.epoch > 0


def test_the_epoch_is_the_prompts_taken_over_all_prompts() -> None:
    source = source_of(roles()[0])  # rollouts of 6 prompts, of 16; 2 epochs of 2 minibatches each
    epochs = [source.epoch]
    for _ in range(5):
        take(source)
        epochs.append(source.epoch)
    assert epochs == [0, *[6 / 16] * 4, 12 / 16]


def test_a_split_critic_gets_each_microbatch_after_its_policy() -> None:
    wholes = source_of(roles()[0]).next_step()
    source = source_of(replace(roles()[0], split_critic=True))
    halves = source.next_step()
    assert wholes is not None and halves is not None
    assert [half.trains for half in halves] == ["policy", "critic"] * len(wholes)
    for number, whole in enumerate(wholes):
        for half, sample_ids in zip(halves[2 * number : 2 * number + 2], (whole.sample_ids, ()), strict=True):
            assert_same(replace(half, trains="both", sample_ids=whole.sample_ids), whole)
            assert half.sample_ids == sample_ids
    again = source.next_step()
    assert again is not None and [half.trains for half in again] == [half.trains for half in halves]


def test_a_minibatch_comes_again_until_the_source_advances() -> None:
    source = source_of(roles()[0], minibatches=3, microbatch_tokens=1)
    take(source)
    first, again = source.next_step(), source.next_step()
    assert first and again and [batch.sample_ids for batch in first] == [batch.sample_ids for batch in again]
    assert source.state_dict()["step"] == 1
    source.advance()
    later = source.next_step()
    assert later and [batch.sample_ids for batch in later] != [batch.sample_ids for batch in first]


def without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith("_seconds")}


def test_a_rollout_tells_how_long_it_generated_scored_and_read() -> None:
    source = source_of(roles()[0])
    source.next_step()
    seconds = {name for name, value in source.metrics().items() if name.endswith("_seconds") and value > 0}
    assert seconds == {"rollout_generate_seconds", "rollout_score_seconds", "rollout_read_seconds"}


def assert_same(one: Experience, other: Experience) -> None:
    for name, value in vars(one).items():
        found = getattr(other, name)
        if isinstance(value, SamplingMask):
            assert torch.equal(value.ids, found.ids) and value.counts == found.counts
        else:
            assert torch.equal(value, found) if isinstance(value, Tensor) else value == found, name


def test_a_rollout_that_is_stopped_leaves_the_source_as_it_was() -> None:
    made, _ = roles()
    source = source_of(made, should_stop=lambda: True)
    before = source.state_dict()
    with pytest.raises(Interrupted):
        source.next_step()
    assert source.state_dict() == before


def test_microbatches_of_a_step_sum_to_its_loss() -> None:
    made, module = roles()
    objective = PolicyObjective(PolicyConfig(), 5)
    losses = []
    for tokens in (1, 1000):
        batches = source_of(made, microbatch_tokens=tokens, minibatches=1).next_step()
        assert batches is not None
        counts = [objective.counts(batch) for batch in batches]
        totals = {name: sum(count[name] for count in counts) for name in counts[0]}
        losses.append(sum(float(objective.loss(module, batch, totals)[0].detach()) for batch in batches))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_packs_are_within_capacity_but_for_an_episode_that_is_longer_alone() -> None:
    assert group_episodes([4, 4, 4, 4, 11, 2], [0] * 6, capacity=10) == [[0, 1], [2, 3], [4], [5]]


def test_a_pack_is_of_one_minibatch() -> None:
    assert group_episodes([2, 2, 2, 2], [0, 1, 1, 2], capacity=10) == [[0], [1, 2], [3]]


def test_in_bf16_the_kl_to_an_equal_reference_is_exactly_zero() -> None:
    made, _ = roles(moved=0.0)
    precisions: set[bool] = set()
    made.trained.model.register_forward_pre_hook(lambda *_: precisions.add(torch.is_autocast_enabled("cpu")))
    rows: list[Any] = []
    source = source_of(made, ranks=InBf16(), record=lambda number, told: rows.extend(told))
    batches = source.next_step()
    assert batches and precisions == {True}
    assert {row["kl"] for row in rows} == {0.0}


def test_in_bf16_every_ratio_of_the_first_minibatch_is_exactly_one() -> None:
    made, module = roles()
    for batch in source_of(made, ranks=InBf16()).next_step() or ():
        with torch.autocast("cpu", torch.bfloat16):
            outputs = module(batch)
        assert torch.equal(outputs.logprobs, batch.old_logprobs)
        assert not torch.equal(module(batch).logprobs, batch.old_logprobs)


def test_the_kl_of_a_rollout_is_by_k1_whatever_estimate_shapes_the_rewards() -> None:
    measured = []
    for kind in ("k1", "k3"):
        source = source_of(roles()[0], policy={"kl_estimator": kind})
        source.next_step()
        measured.append(source.metrics()["rollout_kl"])
    assert measured[0] == measured[1] != 0.0


def test_an_episode_has_its_response_as_labels_and_its_last_token_as_no_input() -> None:
    packed = pack_episodes(
        [Episode(0, (5, 6), Generated([7, 8], [], True)), Episode(1, (9,), Generated([4], [], False))]
    )
    assert packed.input_ids.tolist() == [5, 6, 7, 9]
    assert packed.labels.tolist() == [-100, 7, 8, 4]
    assert packed.segment_lengths == (3, 1) and packed.num_trained == 3
