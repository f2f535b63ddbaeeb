"""The sections of reinforcement learning from human feedback: preferences, reward model, policy, rollouts.

What the configuration must know of each loss and advantage is in one table per family. Checks derive from the tables;
the functions of the same names are in `objectives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import Field

from llmtrain.config.data import TemplatedSourcesConfig
from llmtrain.config.marks import BY_CONTENT, MAY_CHANGE
from llmtrain.config.sections import Fraction, NonNegative, Positive, Section


class PreferenceDataConfig(TemplatedSourcesConfig):
    eval_fraction: Fraction = 0.1
    """Fraction of questions held out, by a hash of the first human turn, so that no question is in both splits."""
    max_seq_len: Annotated[int, Field(ge=4)] = 1024
    """Tokens per pack: the longest pair, chosen and rejected together, each with its prompt."""
    on_long_row: Literal["drop", "truncate"] = "drop"
    """Pairs longer than `max_seq_len`: drop them, or cut the start of both prompts; counted either way."""


class RewardConfig(Section):
    """The reward model: trained on preference pairs, Bradley-Terry (Ouyang et al. 2022, section 3.5, equation 1)."""

    margin: bool = False
    """Require the chosen score to exceed the rejected one by the margin of the row (Llama 2, section 3.2.2)."""
    centering: NonNegative = 0.0
    """Coefficient of (chosen + rejected)^2, which keeps scores around zero (Eisenstein et al. 2023: 0.01)."""


PreferenceLossName = Literal["dpo", "cdpo", "ipo", "orpo", "simpo", "kto"]


@dataclass(frozen=True)
class PreferenceLossFacts:
    """What the configuration knows of a preference loss."""

    options: Mapping[str, float | None]  # keys of PreferenceConfig that it takes -> default; None: must be given
    needs_reference: bool = True


PREFERENCE_LOSSES: dict[PreferenceLossName, PreferenceLossFacts] = {
    "dpo": PreferenceLossFacts({"beta": 0.1}),  # Rafailov 2023, appendix B
    "cdpo": PreferenceLossFacts({"beta": 0.1, "label_smoothing": None}),  # beta is DPO's
    "ipo": PreferenceLossFacts({"beta": 0.1}),  # Azar 2023, the smallest of the three it tries
    "orpo": PreferenceLossFacts({"beta": 0.1}, needs_reference=False),  # Hong 2024, as for Mistral
    "simpo": PreferenceLossFacts({"beta": 2.0, "gamma": 1.0}, needs_reference=False),  # Meng 2024, Llama 3 Base
    "kto": PreferenceLossFacts({"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),  # Ethayarajh 2024
}


class PreferenceConfig(Section):
    """Offline preference optimisation, without a reward model or rollouts: DPO (Rafailov et al. 2023) and variants."""

    loss: PreferenceLossName = "dpo"
    """`cdpo` allows for wrong labels; `orpo`, `simpo` need no reference; `kto` uses single labelled answers."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """Strength of the pull to the reference (IPO: tau, ORPO: lambda, SimPO: scale); None: the default of its paper."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Fraction of pairs with swapped labels; required by `cdpo` (Mitchell 2023)."""
    gamma: NonNegative | None = None
    """Target margin of `simpo`; None: 1 (Meng et al. 2024, Llama 3)."""
    desirable_weight: Annotated[float, Field(gt=0)] | None = None
    """Loss weight of `kto`'s desirable answers; None: 1 (Ethayarajh et al. 2024)."""
    undesirable_weight: Annotated[float, Field(gt=0)] | None = None
    """Loss weight of `kto`'s undesirable answers; None: 1. The paper balances the two by their counts."""

    def options(self) -> dict[str, float]:
        """The options of this loss: as given, else its default. Raises ValueError for one that has to be given."""
        given = self.model_dump()
        options: dict[str, float] = {}
        for name, default in PREFERENCE_LOSSES[self.loss].options.items():
            value = default if given[name] is None else given[name]
            if value is None:
                raise ValueError(f"preference.loss={self.loss}: give preference.{name}, which has no default")
            options[name] = value
        return options


class PromptDataConfig(TemplatedSourcesConfig):
    max_seq_len: Annotated[int, Field(ge=2)] = 1024
    """Tokens per pack of a microbatch: the longest prompt with its response."""
    on_long_row: Literal["drop"] = "drop"
    """Prompts that leave no room for a response of `rollout.max_new_tokens` are dropped and counted."""


AdvantageName = Literal["gae", "group_mean", "dr_grpo", "rloo", "reinforce_pp"]
PolicyLossName = Literal["ppo", "gspo", "cispo", "reinforce"]
AggregationName = Literal["token_mean", "sequence_mean", "constant_length"]
KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class AdvantageFacts:
    """What the configuration knows of an advantage."""

    needs_critic: bool = False
    needs_groups: bool = False  # it compares the responses to one prompt, and gives each response one advantage
    divides_by_std: bool = False  # of the group's rewards
    discounts: bool = False  # it takes policy.gamma


ADVANTAGES: dict[AdvantageName, AdvantageFacts] = {
    "gae": AdvantageFacts(needs_critic=True, discounts=True),
    "group_mean": AdvantageFacts(needs_groups=True, divides_by_std=True),
    "dr_grpo": AdvantageFacts(needs_groups=True),
    "rloo": AdvantageFacts(needs_groups=True),
    "reinforce_pp": AdvantageFacts(discounts=True),
}


@dataclass(frozen=True)
class PolicyLossFacts:
    """What the configuration knows of a policy loss."""

    clips: bool = True  # it takes policy.clip_low and clip_high
    is_off_policy: bool = True  # it corrects for the steps that the policy has taken since the rollout
    needs_response_advantage: bool = False  # it has one ratio per response, so it needs one advantage per response


POLICY_LOSSES: dict[PolicyLossName, PolicyLossFacts] = {
    "ppo": PolicyLossFacts(),
    "gspo": PolicyLossFacts(needs_response_advantage=True),
    "cispo": PolicyLossFacts(),
    "reinforce": PolicyLossFacts(clips=False, is_off_policy=False),
}


class PolicyConfig(Section):
    """The policy update: PPO (Schulman 2017) by default, and variants by other names."""

    advantage: AdvantageName = "gae"
    """Advantage estimator: with a critic (`gae`), or from the other responses to the prompt (GRPO, RLOO, ...)."""
    loss: PolicyLossName = "ppo"
    """Surrogate: clipped ratio per token (PPO) or per response (GSPO), clipped weight (CISPO), plain REINFORCE."""
    aggregation: AggregationName = "token_mean"
    """How token losses are averaged: as in PPO and DAPO, GRPO, or Dr. GRPO."""
    clip_low: Annotated[float, Field(gt=0)] = 0.2
    """Clip range of the ratio below 1 (Schulman 2017: 0.2)."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Clip range of the ratio above 1 (DAPO: 0.28)."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount factor per token, of `gae` and `reinforce_pp` (Ziegler 2019: 1)."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation (Ziegler 2019: 0.95)."""
    whiten: bool = True
    """Whiten the advantages of `gae` over all ranks: mean 0, variance 1 (Huang et al. 2024, detail 14)."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference, the initial policy (Huang et al. 2024: 0.05); 0: no reference is loaded."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Where the KL penalty goes: into each token's reward (Ouyang 2022), or into the loss (Shao 2024)."""
    kl_estimator: KlEstimator = "k1"
    """Estimator of the KL (Schulman 2020); k3 is usual in the loss."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Adapt `kl_coef` to reach this KL, in nats per response by k1 (Ziegler 2019: 6); None: fixed coefficient."""
    kl_horizon: Positive = 10000
    """Samples over which `kl_coef` adapts (Ziegler 2019: 10,000)."""
    kl_budget: Annotated[Annotated[float, Field(gt=0)] | None, MAY_CHANGE] = None
    """End the run once a rollout's mean KL exceeds this, in nats per response by k1; None: no limit."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    critic: Literal["head", "separate"] = "head"
    """The critic of `gae`: a value head on the policy's trunk, trained jointly, or a separate model."""
    critic_init: Annotated[str, BY_CONTENT] = "zero"
    """Initial critic: `zero`; `reward`, the reward model of `rollout.rewards` (Huang et al. 2024); or a folder."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss (Huang et al. 2024: 0.1)."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """PPO value clip range (Huang et al. 2024: 0.2); None: off."""
    critic_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the critic's own weights (of `head`: the value head's); None: `optim.lr`."""

    @property
    def has_critic(self) -> bool:
        return ADVANTAGES[self.advantage].needs_critic


SandboxMode = Literal["auto", "require", "limits"]


class RolloutConfig(Section):
    """How experience is generated."""

    rewards: Annotated[list[str | dict[str, Any]], BY_CONTENT]
    """Weighted sum of `{name, weight, SETTING: VALUE}`; `{name: model, path}` is a reward model (all: docs/rlhf.md)."""
    num_prompts: Positive = 32
    """Prompts per rollout, over all ranks."""
    samples_per_prompt: Positive = 1
    """Responses per prompt; advantages that compare responses need two or more."""
    max_new_tokens: Positive = 128
    """Maximum tokens per response."""
    eval_prompts: Positive | None = None
    """Held-out prompts answered per evaluation; None: all."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature, which the trained logprobs have too (Ouyang 2022: 1)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling (Holtzman 2020); the sampling mask is kept and applied in training; 1: off."""
    top_k: Positive | None = None
    """Top-k sampling (Fan 2018), before `top_p`; the mask is kept and applied in training; None: off."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Old logprobs of the ratio: recomputed by the training forward (Huang et al. 2024), or the sampler's own."""
    ppo_epochs: Positive = 2
    """Passes over each rollout (Ouyang 2022: 1, Huang et al. 2024: 4)."""
    minibatches: Positive = 1
    """Optimizer steps per pass, each on an equal share of the prompts; at most `num_prompts`."""
    sandbox: Annotated[SandboxMode, MAY_CHANGE] = "auto"
    """`code_tests` runs code in a jail if there is one, in a jail or not at all, or under its own limits alone."""
    reward_seconds: Annotated[Annotated[float, Field(gt=0)] | None, MAY_CHANGE] = 1800.0
    """Time limit of a call of a reward function that is not ours, for all samples of a round; None: no limit."""
    reward_retries: Annotated[Annotated[int, Field(ge=0)], MAY_CHANGE] = 0
    """How often a reward function that fails is called again."""
    on_reward_error: Annotated[Literal["stop", "abstain"], MAY_CHANGE] = "stop"
    """If a reward fails: save and stop, or leave it out of the round's scores and count it (`rollout_failed/NAME`)."""
    on_weak_reward: Literal["warn", "refuse"] = "warn"
    """What to do if a reward model's card says that it may be no better than chance."""
    score_normalise: bool = False
    """Normalise scores by their running mean and std (Ziegler 2019, section 2; Engstrom 2020, section 3)."""
    missing_eos_penalty: NonNegative = 0.0
    """Subtracted from the score of a response that nothing stopped (Huang et al. 2024, detail 3, the EOS trick)."""
    mask_truncated: bool = False
    """Leave responses that nothing stopped out of the loss (overlong filtering, DAPO: Yu 2025, section 3.4)."""
    overlong_buffer_tokens: Positive | None = None
    """Soft overlong penalty over the last tokens before `max_new_tokens` (Yu 2025, equation 13); None: off."""
    overlong_penalty: NonNegative = 1.0
    """Subtracted from the score at `max_new_tokens`, linearly less within the buffer (Yu 2025: 1)."""
    score_clip: Annotated[float, Field(gt=0)] | None = None
    """Clip scores, after normalisation and penalties, to +- this (Engstrom 2020: 5 to 10); None: off."""
    dynamic_sampling: bool = False
    """Replace prompts whose responses all score the same, at most ten rounds (DAPO: Yu 2025, section 3.2)."""

    def reward_models(self) -> dict[str, dict[str, Any]]:
        """The rewards that are trained models, by the keys of their places."""
        return {f"rollout.rewards[{number}]": spec for number, spec in enumerate(self.rewards) if is_reward_model(spec)}

    def names(self, reward: str) -> bool:
        """Whether one of the rewards has this name."""
        return reward in map(_reward_name, self.rewards)

    def has_functions(self) -> bool:
        """Whether one of the rewards is a function that is not ours."""
        return any(":" in str(_reward_name(spec)) for spec in self.rewards)


def _reward_name(spec: str | dict[str, Any]) -> Any:
    return spec.get("name") if isinstance(spec, dict) else spec


def is_reward_model(spec: object) -> TypeGuard[dict[str, Any]]:
    """Whether a reward of `rollout.rewards` is a trained model."""
    return isinstance(spec, dict) and spec.get("name") == "model"
