"""The sections of reinforcement learning from human feedback: preferences, reward model, policy, rollouts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import Field

from llmtrain.config.marks import MAY_CHANGE
from llmtrain.config.sections import Fraction, NonNegative, Positive, Section, TemplatedSourcesConfig


class PreferenceDataConfig(TemplatedSourcesConfig):
    eval_fraction: Fraction = 0.1
    """Share of questions held out, chosen by a hash of the first human turn, so that none stands on both sides."""
    max_seq_len: Annotated[int, Field(ge=4)] = 1024
    """Tokens of a pack: the longest pair, chosen and rejected together, each with its prompt."""
    on_long_row: Literal["drop", "truncate"] = "drop"
    """A pair longer than `max_seq_len` is left out, or both its prompts lose their beginning; always counted."""


class RewardConfig(Section):
    """The reward model: trained on preference pairs, Bradley-Terry (Ouyang et al. 2022, section 3.5, equation 1)."""

    margin: bool = False
    """Demand that the chosen answer is better by the margin of its row (Llama 2, section 3.2.2)."""
    centering: NonNegative = 0.0
    """Coefficient of (chosen + rejected)^2, which keeps scores around zero (Eisenstein et al. 2023: 0.01)."""


class PreferenceConfig(Section):
    """What is minimised over preference pairs without a reward model: DPO (Rafailov et al. 2023) and its kin."""

    loss: Literal["dpo", "cdpo", "ipo", "orpo", "simpo", "kto"] = "dpo"
    """`cdpo` expects wrong labels; `orpo` and `simpo` need no reference; `kto` takes each answer by itself."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """Strength of the pull to the reference (IPO's tau, ORPO's lambda, SimPO's scale); None: as its paper has it."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """The share of pairs that are labelled the wrong way round, which `cdpo` needs (Mitchell 2023)."""
    gamma: NonNegative | None = None
    """By how much `simpo` wants the chosen answer ahead; None: 1, as Meng et al. 2024 have it for Llama 3."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of `kto`'s desirable answers (Ethayarajh et al. 2024: 1)."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of its undesirable answers; the paper balances the two where there are more of one."""


class PromptDataConfig(TemplatedSourcesConfig):
    max_seq_len: Annotated[int, Field(ge=2)] = 1024
    """Tokens of a microbatch's pack: the longest prompt with its response."""
    on_long_row: Literal["drop"] = "drop"
    """A prompt that leaves no room for a response of `rollout.max_new_tokens` is left out and counted."""


class PolicyConfig(Section):
    """The update of the policy: PPO (Schulman 2017) as it stands, its family by other names."""

    advantage: Literal["gae", "group_mean", "dr_grpo", "rloo", "reinforce_pp"] = "gae"
    """Where advantages come from: a critic (`gae`, PPO), or other samples of the prompt (GRPO, Dr. GRPO, RLOO, ...)."""
    loss: Literal["ppo", "gspo", "cispo", "reinforce"] = "ppo"
    """The surrogate: clipped ratio of a token, of a sequence (GSPO), clipped weight (CISPO), or plain REINFORCE."""
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """How the terms of tokens become a loss: as PPO and DAPO, as GRPO, or as Dr. GRPO."""
    clip_low: Annotated[float, Field(gt=0)] = 0.2
    """How far a ratio may fall below 1 (Schulman 2017: 0.2)."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """How far it may rise above 1 (DAPO: 0.28)."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of a token (Ziegler 2019: 1)."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantages (Ziegler 2019: 0.95)."""
    whiten: bool = True
    """Scale the advantages of `gae` to mean 0 and variance 1 over all ranks (Huang et al. 2024, detail 14)."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the model that the run starts from (Huang et al. 2024: 0.05); 0: no reference is held."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL goes: into the reward of each token (Ouyang 2022), or into the loss (Shao 2024)."""
    kl_kind: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL (Schulman 2020); in the loss k3 is usual."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Adapt `kl_coef` to this KL, nats a response (Ziegler 2019: 6), always by k1; None: fixed."""
    kl_horizon: Positive = 10000
    """Samples over which `kl_coef` adapts (Ziegler 2019: 10,000)."""
    kl_budget: Annotated[Annotated[float, Field(gt=0)] | None, MAY_CHANGE] = None
    """End the run above this mean KL of a rollout, nats a response, by k1 (`checkpoint.best` keeps one below)."""
    entropy_coef: NonNegative = 0.0
    """Weight of an entropy bonus."""
    critic: Literal["head", "separate"] = "head"
    """The critic of `gae`: a head on the policy's trunk, which it trains along, or a trunk of its own."""
    critic_init: str = "zero"
    """Its start: `zero`; `reward`, as the reward model of `rollout.rewards` (Huang et al. 2024); or one's folder."""
    value_coef: NonNegative = 0.1
    """Weight of the critic's loss (Huang et al. 2024: 0.1)."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """How far a value may move from that of the rollout before its gradient ends (Huang 2024: 0.2); None: off."""
    critic_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the critic's own weights, of a `head` those of the head; None: `optim.lr`."""


class RolloutConfig(Section):
    """How experience is made."""

    rewards: list[str | dict[str, Any]]
    """Weighted sum of `{name, weight, SETTING: VALUE}`; `{name: model, path}` is a reward model (all: docs/rlhf.md)."""
    num_prompts: Positive = 32
    """Prompts of a rollout, over all ranks."""
    samples_per_prompt: Positive = 1
    """Responses to each; methods that compare samples of a prompt need two or more."""
    max_new_tokens: Positive = 128
    """Longest response."""
    eval_prompts: Positive | None = None
    """Held-out prompts that an evaluation answers; None: all."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the draw, and of the logprobs that are trained (Ouyang 2022: 1)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the fewest likeliest tokens of this probability (Holtzman 2020), and train among them; 1: off."""
    top_k: Positive | None = None
    """Draw among this many likeliest tokens (Fan 2018), before `top_p`, and train among them; None: off."""
    behaviour: Literal["train", "generate"] = "train"
    """Logprobs that ratios start from: of the forward that trains (Huang et al. 2024), or as they were drawn."""
    epochs: Positive = 2
    """Passes over a rollout's episodes (Ouyang 2022 takes 1, Huang et al. 2024 4)."""
    minibatches: Positive = 1
    """Optimizer steps of a pass, each on an equal share of the prompts, which are no fewer."""
    on_weak_reward: Literal["warn", "refuse"] = "warn"
    """What happens where a reward model's card says that it may be no better than chance."""
    score_normalise: bool = False
    """Scores less the mean of all so far, in their deviations (Ziegler 2019, section 2; Engstrom 2020, section 3)."""
    missing_eos_penalty: NonNegative = 0.0
    """Taken from the score of a response that its budget cut off (Huang et al. 2024, detail 3, the EOS trick)."""
    overlong_buffer_tokens: Positive | None = None
    """The last tokens before `max_new_tokens`, where length costs (Yu 2025, equation 13); None: it costs nothing."""
    overlong_penalty: NonNegative = 1.0
    """Taken from the score at `max_new_tokens`; within the buffer a part of it, in a straight line (Yu 2025: 1)."""
    score_clip: Annotated[float, Field(gt=0)] | None = None
    """Clip scores, normalised and less penalties, to this range around zero (Engstrom 2020: 5 to 10); None: off."""
    drop_even_groups: bool = False
    """Leave out prompts whose samples all score the same, and draw others in their place (Yu 2025, section 3.2)."""

    def reward_models(self) -> dict[str, dict[str, Any]]:
        """The rewards that are trained models, by the keys of their places."""
        return {f"rollout.rewards[{number}]": spec for number, spec in enumerate(self.rewards) if is_reward_model(spec)}


def is_reward_model(spec: object) -> TypeGuard[dict[str, Any]]:
    """Whether a reward of `rollout.rewards` is a trained model."""
    return isinstance(spec, dict) and spec.get("name") == "model"
