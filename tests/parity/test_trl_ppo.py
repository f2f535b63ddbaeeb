"""PPO beside TRL 1.12's PPOTrainer: its recorded experiences give the same rewards, advantages, returns and losses.

`record_trl_ppo.py` says how they were recorded, docs/rlhf.md where the two differ and why. TRL knows one place more
after a response that stops before its budget: there it puts the score, and takes and trains a value. With that place
taken for a token (`places`), ours must equal it too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmtrain.batch import Experience
from llmtrain.config.rl import PolicyConfig
from llmtrain.models.wrappers.actor_critic import PolicyOutputs
from llmtrain.objectives.advantages import gae, moments, shaped_rewards, whitened
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.objectives.policy_losses import kl_estimate, value_loss
from llmtrain.rollout.engine import Generated
from llmtrain.rollout.packing import Episode, pack_episodes

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("trl_ppo_1_12.json").read_text(encoding="utf-8"))
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@dataclass(frozen=True)
class Case:
    """A recorded experience."""

    recorded: dict[str, Any]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each response that TRL trains."""
        return tuple(row.count(False) for row in self.recorded["experience"]["padding_mask"])

    @property
    def places(self) -> tuple[int, ...]:
        """The same, and the one after the last, if the response has one."""
        return tuple(row.count(False) for row in self.recorded["experience"]["padding_mask_p1"])

    def of(self, name: str, lengths: Sequence[int]) -> Tensor:
        """A variable of the experience, responses end to end."""
        return flat(self.recorded["experience"][name], lengths)

    @property
    def scores(self) -> Tensor:
        return torch.tensor(self.recorded["experience"]["scores"])

    def estimates(self, rewards: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Our advantages and returns, from its values."""
        return gae(rewards, self.of("values", lengths), lengths, gamma=1.0, gae_lambda=self.recorded["gae_lambda"])

    def shaped(self, lengths: tuple[int, ...]) -> Tensor:
        """Our rewards, from its logprobs; both of its logprobs are equal after a response, so the KL there is zero."""
        logprobs, ref_logprobs = self.of("logprobs", lengths), self.of("ref_logprobs", lengths)
        kl = kl_estimate(logprobs, ref_logprobs, self.recorded["kl_estimator"])
        return shaped_rewards(self.scores, kl, self.recorded["kl_coef"], lengths)


def flat(rows: Sequence[Sequence[float]], lengths: Sequence[int]) -> Tensor:
    return torch.tensor([value for row, length in zip(rows, lengths, strict=True) for value in row[:length]])


class Says(nn.Module):
    """A model that says what TRL's said."""

    def __init__(self, logprobs: Tensor, values: Tensor) -> None:
        super().__init__()
        self.said = PolicyOutputs(logprobs, torch.zeros_like(logprobs), values)

    def forward(self, batch: Experience) -> PolicyOutputs:
        return self.said


def losses(case: Case, update: dict[str, Any], totals: dict[str, float] | None = None) -> dict[str, float]:
    """What our objective makes of a recorded microbatch; `totals`: of the step, None: of the microbatch."""
    chosen = update["indices"]
    lengths = tuple(case.tokens[index] for index in chosen)
    old = {
        name: flat([case.recorded["experience"][name][index] for index in chosen], lengths)
        for name in ("logprobs", "ref_logprobs", "whitened", "values", "returns")
    }
    tokens = sum(lengths)
    batch = Experience(
        input_ids=torch.zeros(tokens, dtype=torch.long),
        labels=torch.zeros(tokens, dtype=torch.long),
        position_ids=torch.zeros(tokens, dtype=torch.long),
        segment_lengths=lengths,
        response_lengths=lengths,
        old_logprobs=old["logprobs"],
        ref_logprobs=old["ref_logprobs"],
        advantages=old["whitened"],
        old_values=old["values"],
        returns=old["returns"],
        sample_ids=tuple(chosen),
    )
    recorded = case.recorded
    config = PolicyConfig(
        clip_low=recorded["clip"],
        clip_high=recorded["clip"],
        value_clip=recorded["value_clip"],
        value_coef=recorded["value_coef"],
    )
    objective = PolicyObjective(config, max(lengths))
    model = Says(flat(update["new_logprobs"], lengths), flat(update["new_values"], lengths))
    _, metrics = objective.loss(model, batch, totals or objective.counts(batch))
    return {name: float(value) for name, value in metrics.items()}


STOPPED, FULL_LENGTH = Case(RECORDED["stopped"]), Case(RECORDED["full_length"])
MICROBATCHES, PAD_IS_STOP = Case(RECORDED["microbatches"]), Case(RECORDED["pad_is_stop"])
cases = pytest.mark.parametrize("case", [STOPPED, FULL_LENGTH, MICROBATCHES])


@cases
def test_the_kl_of_a_token_is_that_of_trl(case: Case) -> None:
    logprobs, ref_logprobs = case.of("logprobs", case.tokens), case.of("ref_logprobs", case.tokens)
    kl = kl_estimate(logprobs, ref_logprobs, case.recorded["kl_estimator"])
    torch.testing.assert_close(kl, case.of("kl", case.tokens), **TOLERANCE)


@cases
def test_rewards_are_those_of_trl_with_its_place_behind_a_response(case: Case) -> None:
    torch.testing.assert_close(case.shaped(case.places), case.of("rewards", case.places), **TOLERANCE)


@cases
def test_advantages_and_returns_are_those_of_trl_with_its_place_behind_a_response(case: Case) -> None:
    advantages, returns = case.estimates(case.shaped(case.places), case.places)
    torch.testing.assert_close(advantages, case.of("raw_advantages", case.places), **TOLERANCE)
    torch.testing.assert_close(returns, case.of("returns", case.places), **TOLERANCE)


def test_advantages_of_responses_of_full_length_are_those_of_trl() -> None:
    assert FULL_LENGTH.places == FULL_LENGTH.tokens
    advantages, returns = FULL_LENGTH.estimates(FULL_LENGTH.shaped(FULL_LENGTH.tokens), FULL_LENGTH.tokens)
    torch.testing.assert_close(advantages, FULL_LENGTH.of("raw_advantages", FULL_LENGTH.tokens), **TOLERANCE)
    torch.testing.assert_close(returns, FULL_LENGTH.of("returns", FULL_LENGTH.tokens), **TOLERANCE)


@pytest.mark.parametrize("case", [STOPPED, MICROBATCHES])
def test_behind_a_stop_trl_trusts_a_value_where_the_score_is_known(case: Case) -> None:
    """gae_TRL[t] - gae[t] = (1 - lambda) * lambda^(last - t) * (value after the response - score)."""
    ours, _ = case.estimates(case.shaped(case.tokens), case.tokens)
    decay, expected = case.recorded["gae_lambda"], []
    for row, length, places, score in zip(
        case.recorded["experience"]["values"], case.tokens, case.places, case.scores.tolist(), strict=True
    ):
        error = row[length] - score if places > length else 0.0
        expected += [(1 - decay) * decay ** (length - 1 - token) * error for token in range(length)]
    difference = case.of("raw_advantages", case.tokens) - ours
    torch.testing.assert_close(difference, torch.tensor(expected), **TOLERANCE)
    assert difference.abs().max() > 0.05


@pytest.mark.parametrize("case", [STOPPED, MICROBATCHES])
def test_without_lambda_the_place_behind_a_response_changes_no_advantage(case: Case) -> None:
    ours, _ = gae(case.shaped(case.tokens), case.of("values", case.tokens), case.tokens, gamma=1.0, gae_lambda=1.0)
    wide, _ = gae(case.of("rewards", case.places), case.of("values", case.places), case.places, 1.0, gae_lambda=1.0)
    rows = zip(wide.split(list(case.places)), case.tokens, strict=True)
    torch.testing.assert_close(ours, torch.cat([row[:length] for row, length in rows]), **TOLERANCE)


@cases
def test_whitened_advantages_are_those_of_trl(case: Case) -> None:
    raw = case.of("raw_advantages", case.tokens)
    ours = whitened(raw, moments(raw), shift_mean=True)
    torch.testing.assert_close(ours, case.of("whitened", case.tokens), **TOLERANCE)


@pytest.mark.parametrize("passed", [0, 1, 2])
def test_the_losses_of_responses_of_full_length_are_those_of_trl(passed: int) -> None:
    update = FULL_LENGTH.recorded["updates"][passed]
    ours = losses(FULL_LENGTH, update)
    for name in ("policy_loss", "value_loss", "value_clip_fraction", "loss"):
        assert ours[name] == pytest.approx(update[name], abs=1e-5), name


@pytest.mark.parametrize("case", [STOPPED, MICROBATCHES])
def test_the_policy_loss_of_a_microbatch_is_that_of_trl(case: Case) -> None:
    ours = [losses(case, update)["policy_loss"] for update in case.recorded["updates"]]
    assert ours == pytest.approx([update["policy_loss"] for update in case.recorded["updates"]], abs=1e-5)


@cases
def test_the_share_of_clipped_tokens_is_that_of_trl(case: Case) -> None:
    ours = [losses(case, update)["clip_fraction"] for update in case.recorded["updates"]]
    assert sum(ours) / len(ours) == pytest.approx(case.recorded["metrics"]["policy/clipfrac_avg"], abs=1e-5)
    assert max(ours) > 0.2


@cases
def test_the_value_loss_is_that_of_trl_with_its_place_behind_a_response(case: Case) -> None:
    for update in case.recorded["updates"]:
        chosen = update["indices"]
        places = [case.places[index] for index in chosen]
        old_values, returns = (
            flat([case.recorded["experience"][name][index] for index in chosen], places)
            for name in ("values", "returns")
        )
        values = flat(update["new_values"], places)
        share, metrics = value_loss(values, old_values, returns, case.recorded["value_clip"], {"tokens": sum(places)})
        assert float(share) == pytest.approx(update["value_loss"], abs=1e-5)
        assert float(metrics["value_clip_fraction"]) == pytest.approx(update["value_clip_fraction"], abs=1e-5)


def test_a_step_in_microbatches_is_one_mean_over_its_tokens_and_not_trls_mean_of_means() -> None:
    """Before the first step every ratio is 1, so over whitened advantages the policy's loss is zero."""
    step = MICROBATCHES.recorded["updates"][:3]
    assert sorted(index for update in step for index in update["indices"]) == list(range(6))
    totals = {"tokens": sum(MICROBATCHES.tokens), "sequences": 6}
    assert sum(losses(MICROBATCHES, update, totals)["policy_loss"] for update in step) == pytest.approx(0, abs=1e-5)
    assert abs(sum(update["policy_loss"] for update in step) / 3) > 0.01


def test_the_stop_token_is_trained_also_where_it_pads() -> None:
    responses = PAD_IS_STOP.recorded["experience"]["responses"]
    stop = RECORDED["stop_token_id"]
    ended = [row[: row.index(stop) + 1] if stop in row else row for row in responses]
    packed = pack_episodes([Episode(number, (5,), Generated(list(row), [], True)) for number, row in enumerate(ended)])
    num_stopped = sum(row[-1] == stop for row in ended)
    assert packed.num_trained == sum(PAD_IS_STOP.tokens) + num_stopped
    assert num_stopped >= 2
