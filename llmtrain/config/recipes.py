"""The whole configuration of each recipe: which sections it has, and what of them must agree."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.data import ChatDataConfig, DataConfig, Source, SourcesConfig
from llmtrain.config.marks import IMMATERIAL, MAY_CHANGE, Feature, Needs
from llmtrain.config.rl import (
    ADVANTAGES,
    POLICY_LOSSES,
    PREFERENCE_LOSSES,
    PolicyConfig,
    PreferenceConfig,
    PreferenceDataConfig,
    PromptDataConfig,
    RewardConfig,
    RolloutConfig,
)
from llmtrain.config.sections import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    NonNegative,
    OptimConfig,
    PretrainedModelConfig,
    RunConfig,
    Section,
    TokenizerConfig,
    TrainConfig,
    TunedModelConfig,
    iter_keys,
)

IDLE_IN_PRETRAINING = ("fields", "roles", "role_key", "content_key")
IDLE_IN_TUNING = ("text_field",)
SAMPLE_KEYS = ("eval.samples", "eval.sample_tokens")
TASK_KEYS = ("eval.tasks",)  # the keys of how they are measured need it
PAIR_KEYS = ("eval.before_after", "eval.general_text")
NEXT_TOKEN_KEYS = ("train.label_smoothing", "train.z_loss", "model.neftune_alpha")


class RecipeConfig(Section):
    """What every recipe has, and the rules that hold in each."""

    run: RunConfig
    model: PretrainedModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: SourcesConfig
    train: TrainConfig
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE] = CheckpointConfig()
    log: Annotated[LogConfig, IMMATERIAL] = LogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RecipeConfig:
        data, train = self.data, self.train
        if (train.steps is None) == (train.epochs is None):
            which = (
                "neither is set" if train.steps is None else "both are set: add train.epochs=null or train.steps=null"
            )
            raise ValueError(f"give exactly one of train.steps and train.epochs: {which}")
        if train.epochs is not None and any(source.weight is not None for source in data.train):
            raise ValueError("train.epochs is ambiguous with weighted sources, each ends its own: give train.steps")
        if data.order == "given" and any(source.weight is not None for source in data.train):
            raise ValueError(
                "data.order=given takes one source after the other, which weights would mix: remove either"
            )
        self._check_batch()
        if train.microbatch_tokens < data.max_seq_len:
            raise ValueError(
                f"train.microbatch_tokens={train.microbatch_tokens} is smaller than one pack, "
                f"data.max_seq_len={data.max_seq_len}"
            )
        if data.eval is not None and data.asks_for_a_split and data.eval_fraction:
            raise ValueError("give data.eval or data.eval_fraction, not both")
        if not self._evaluates and (self.eval.patience or self.checkpoint.best):
            raise ValueError("eval.patience and checkpoint.best need held-out data: data.eval or data.eval_fraction")
        if self.eval.patience and self.eval.every is None:
            raise ValueError("eval.patience needs eval.every")
        if (self.checkpoint.export_best or self.eval.patience) and not self.checkpoint.best:
            raise ValueError("checkpoint.export_best and eval.patience need checkpoint.best=true")
        if train.spike_factor is not None and self.checkpoint.every is None:
            raise ValueError("train.spike_factor rolls back to a checkpoint: give checkpoint.every")
        if train.steps is not None:
            self.optim.warmup(train.steps)
        self._refuse_idle_keys()
        if self.log.profile is not None and not 1 <= self.log.profile[0] <= self.log.profile[1]:
            raise ValueError(f"log.profile={self.log.profile}: give the first and the last step, from 1")
        return self

    def _check_batch(self) -> None:
        """Raise ValueError if a step is not a whole number of packs."""
        if self.train.global_batch_tokens % self.data.max_seq_len:
            raise ValueError(
                f"train.global_batch_tokens={self.train.global_batch_tokens} is not a multiple of "
                f"data.max_seq_len={self.data.max_seq_len}"
            )

    def _refuse_idle_keys(self) -> None:
        """Raise ValueError for a key that differs from its default and would do nothing."""
        keys = dict(iter_keys(type(self)))
        idle = {key: what for key, (is_idle, what) in self._idle_keys().items() if is_idle}
        for key, field in keys.items():
            section = self._value(key.rsplit(".", 1)[0])
            missing = [mark.what for mark in field.metadata if isinstance(mark, Needs) and not mark.holds(section)]
            missing += [idle[key]] if key in idle else []
            if missing and field.default != self._value(key):
                raise ValueError(f"{key} does nothing without {missing[0]}: remove it")
        if self.data.eval is not None and any(source.weight is not None for source in self.data.eval):
            raise ValueError("data.eval: weights do nothing there, every held-out token counts: remove them")

    def _idle_keys(self) -> dict[str, tuple[bool, str]]:
        """Key -> (whether it would do nothing, what it needs), for what a key's own section does not decide."""
        return dict.fromkeys(("eval.tokens", *SAMPLE_KEYS, *TASK_KEYS), (not self._evaluates, "held-out data"))

    def _refuse_in_sources(self, names: tuple[str, ...], fix: str) -> None:
        """Raise ValueError for a key of a source that has no meaning in this recipe."""
        for source in (*self.data.train, *(self.data.eval or ())):
            for name in names:
                if getattr(source, name) != Source.model_fields[name].default:
                    raise ValueError(f"{source.path}: {name} does nothing in this recipe: {fix}")

    def _value(self, key: str) -> Any:
        """The value of a dotted key."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value

    @property
    def _evaluates(self) -> bool:
        return self.data.eval is not None or self.data.eval_fraction > 0

    @property
    def exports_best(self) -> bool:
        """Whether `model/` is made from the best checkpoint instead of the last."""
        return self.checkpoint.export_best or self.eval.patience is not None

    def features(self) -> dict[str, bool]:
        """The features that not every engine has, and whether this run asks for them."""
        return {
            mark.name: self._value(key) in mark.values if mark.values else self._value(key) != field.default
            for key, field in iter_keys(type(self))
            for mark in field.metadata
            if isinstance(mark, Feature)
        }


class PretrainConfig(RecipeConfig):
    """`recipes/pretrain.py`: raw text to a model."""

    model: ModelConfig = ModelConfig()
    data: DataConfig

    @model_validator(mode="after")
    def _model_is_given_once(self) -> PretrainConfig:
        model = self.model
        if model.path is None and self.tokenizer.path is None:
            raise ValueError("a new model needs tokenizer.path")
        if model.path is not None and model.preset:
            raise ValueError("model.path keeps the model's own shape: remove model.preset")
        self._refuse_in_sources(IDLE_IN_PRETRAINING, "name text_field instead")
        return self

    def _idle_keys(self) -> dict[str, tuple[bool, str]]:
        return (
            super()._idle_keys()
            | dict.fromkeys(SAMPLE_KEYS, (True, "prompts, which raw text does not have"))
            | dict.fromkeys(PAIR_KEYS, (self.eval.before_after > 0, "a recipe that tunes a model"))
        )


class TuningOptimConfig(OptimConfig):
    lr: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate (Llama 2, section 3.1: 2e-5 for full fine-tuning; adapters: about ten times that)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's second-moment decay (Kingma and Ba 2015)."""
    weight_decay: NonNegative = 0.0
    """Decoupled L2 weight decay of matrices; norms, biases and embeddings have none."""


class TuningConfig(RecipeConfig):
    """What recipes share that start from a trained model."""

    model: TunedModelConfig
    adapter: AdapterConfig = AdapterConfig()
    optim: TuningOptimConfig = TuningOptimConfig()

    @model_validator(mode="after")
    def _adapter_agrees(self) -> TuningConfig:
        if self.model.quantize is not None and self.adapter.kind == "none":
            raise ValueError("model.quantize freezes the model in 4 bits: give adapter.kind=lora or dora")
        if self.model.dtype != "auto" and self.adapter.kind == "none":
            raise ValueError("model.dtype does nothing without adapter.kind=lora or dora: remove it")
        if self.model.config and self.adapter.kind != "none":
            raise ValueError(
                "model.config: an adapter's folder names its base, which keeps its own configuration: set "
                "adapter.kind=none, or train on a copy of the base with another config.json"
            )
        return self


def without_before_after(config: RecipeConfig) -> dict[str, Any]:
    """Overrides by which a run does not measure before and after, as one of many that are compared anyway."""
    if not isinstance(config, TuningConfig) or isinstance(config, RewardStageConfig) or not config.eval.before_after:
        return {}
    off: dict[str, Any] = {"eval.before_after": 0, "eval.general_text": None}
    if not config.eval.samples and not isinstance(config, PolicyStageConfig):
        off["eval.sample_tokens"] = EvalConfig.model_fields["sample_tokens"].default
    return off


class SftConfig(TuningConfig):
    """`recipes/sft.py`: instructions and chats to a tuned model."""

    data: ChatDataConfig

    @model_validator(mode="after")
    def _template_agrees(self) -> SftConfig:
        if self.data.chat_template == "none" and self.data.loss_on == "last":
            raise ValueError("data.loss_on=last needs turns, and data.chat_template=none has none: use completion")
        self._refuse_in_sources(IDLE_IN_TUNING, "name `fields: {text: ...}` instead")
        return self


class RewardOptimConfig(TuningOptimConfig):
    lr: Annotated[float, Field(gt=0)] = 9e-6
    """Peak learning rate (Ouyang et al. 2022, C.2: 9e-6 for full fine-tuning; adapters: about ten times that)."""


class RewardStageConfig(TuningConfig):
    """`recipes/rlhf.py` with a section `reward`: preference pairs to a model that scores answers."""

    data: PreferenceDataConfig
    reward: RewardConfig
    optim: RewardOptimConfig = RewardOptimConfig()

    @model_validator(mode="after")
    def _sources_agree(self) -> RewardStageConfig:
        self._refuse_in_sources(IDLE_IN_TUNING, "name `fields: {chosen: ..., rejected: ...}` instead")
        return self

    def _idle_keys(self) -> dict[str, tuple[bool, str]]:
        return (
            super()._idle_keys()
            | dict.fromkeys(NEXT_TOKEN_KEYS, (True, "a loss over tokens"))
            | dict.fromkeys((*SAMPLE_KEYS, *TASK_KEYS, *PAIR_KEYS), (True, "a model that answers"))
        )


class PreferenceOptimConfig(TuningOptimConfig):
    lr: Annotated[float, Field(gt=0)] = 1e-6
    """Peak learning rate (DPO, appendix B: 1e-6 for full fine-tuning; adapters: about ten times that)."""


class PreferenceStageConfig(TuningConfig):
    """`recipes/rlhf.py` with a section `preference`: preference pairs to a policy, by DPO and its variants."""

    data: PreferenceDataConfig
    preference: PreferenceConfig
    optim: PreferenceOptimConfig = PreferenceOptimConfig()

    @model_validator(mode="after")
    def _loss_agrees(self) -> PreferenceStageConfig:
        self.preference.options()
        self._refuse_in_sources(IDLE_IN_TUNING, "name `fields: {chosen: ..., rejected: ...}` instead")
        return self

    def _idle_keys(self) -> dict[str, tuple[bool, str]]:
        taken = PREFERENCE_LOSSES[self.preference.loss].options
        takers: dict[str, list[str]] = {}
        for loss, facts in PREFERENCE_LOSSES.items():
            for option in facts.options:
                takers.setdefault(option, []).append(f"preference.loss={loss}")
        return (
            super()._idle_keys()
            | dict.fromkeys(NEXT_TOKEN_KEYS, (True, "a loss over tokens"))
            | {f"preference.{option}": (option not in taken, " or ".join(losses)) for option, losses in takers.items()}
        )


class PolicyOptimConfig(TuningOptimConfig):
    lr: Annotated[float, Field(gt=0)] = 3e-6
    """Peak learning rate (Huang et al. 2024: 3e-6 for full fine-tuning; adapters: about ten times that)."""


class PolicyStageConfig(TuningConfig):
    """`recipes/rlhf.py` with a section `policy`: prompts and a reward to a policy, by PPO and its family."""

    data: PromptDataConfig
    policy: PolicyConfig
    rollout: RolloutConfig
    optim: PolicyOptimConfig = PolicyOptimConfig()

    @model_validator(mode="after")
    def _policy_agrees(self) -> PolicyStageConfig:
        policy, rollout = self.policy, self.rollout
        if self.train.steps is None:
            raise ValueError("train.epochs has no meaning with rollouts: give train.steps")
        if ADVANTAGES[policy.advantage].needs_groups and rollout.samples_per_prompt < 2:
            raise ValueError(
                f"policy.advantage={policy.advantage} compares samples of a prompt: give rollout.samples_per_prompt=2 "
                "or more"
            )
        self._kl_agrees()
        self._loss_agrees()
        if self.model.dropout or self.adapter.dropout:
            key = "model.dropout" if self.model.dropout else "adapter.dropout"
            raise ValueError(f"{key}: the policy is trained as it answers, without dropout: remove it")
        if all(isinstance(spec, dict) and spec.get("weight", 1) == 0 for spec in rollout.rewards):
            what = "no reward" if not rollout.rewards else "only rewards of weight 0, which are logged alone"
            raise ValueError(f"rollout.rewards: {what}, so that nothing would be trained: give one with another weight")
        if rollout.minibatches > rollout.num_prompts:
            raise ValueError(
                f"rollout.minibatches={rollout.minibatches} is more than rollout.num_prompts={rollout.num_prompts}: "
                "a step needs a prompt"
            )
        buffer = rollout.overlong_buffer_tokens
        if buffer is not None and buffer > rollout.max_new_tokens:
            raise ValueError(
                f"rollout.overlong_buffer_tokens={buffer} is more than rollout.max_new_tokens={rollout.max_new_tokens}"
            )
        if policy.critic_init == "reward" and len(rollout.reward_models()) != 1:
            raise ValueError(
                f"policy.critic_init=reward: rollout.rewards names {len(rollout.reward_models())} reward models: name "
                "one, or give a reward model's folder here"
            )
        if self.train.spike_factor is not None:
            raise ValueError("train.spike_factor needs a loss over stored data, not rollouts: remove it")
        self._refuse_in_sources(IDLE_IN_TUNING, "name `fields: {prompt: ...}` instead")
        return self

    def _kl_agrees(self) -> None:
        policy, rollout = self.policy, self.rollout
        if policy.kl_placement == "loss" and policy.kl_estimator == "k1":
            raise ValueError(
                "policy.kl_estimator=k1 in the loss trains nothing: choose k2 or k3, or kl_placement=reward"
            )
        if policy.kl_placement == "loss" and policy.kl_target is not None:
            raise ValueError(
                "policy.kl_target adapts the weight of a KL in the reward: remove it, or set kl_placement=reward"
            )
        divides = ADVANTAGES[policy.advantage].divides_by_std
        if divides and policy.kl_placement == "reward" and policy.kl_coef > 0:
            raise ValueError(
                f"policy.advantage={policy.advantage} divides by the standard deviation of a group's rewards, which "
                "would scale up a KL in them: give policy.kl_placement=loss and kl_estimator=k3, or kl_coef=0"
            )
        samples = rollout.num_prompts * rollout.samples_per_prompt
        if policy.kl_target is not None and samples >= 5 * policy.kl_horizon:
            raise ValueError(
                f"policy.kl_horizon={policy.kl_horizon} is too short for rollouts of {samples} samples: raise it"
            )

    def _loss_agrees(self) -> None:
        policy, rollout = self.policy, self.rollout
        loss, advantage = POLICY_LOSSES[policy.loss], ADVANTAGES[policy.advantage]
        if not loss.is_off_policy and rollout.ppo_epochs * rollout.minibatches > 1:
            raise ValueError(
                f"policy.loss={policy.loss} does not correct for earlier steps of a rollout: give "
                "rollout.ppo_epochs=1 and minibatches=1, or another loss"
            )
        if loss.needs_response_advantage and not advantage.needs_groups:
            raise ValueError(
                f"policy.loss={policy.loss} takes one advantage per response: policy.advantage={policy.advantage} "
                "gives one per token"
            )

    def _check_batch(self) -> None:
        """A step is a minibatch of episodes, whatever their tokens."""

    def _idle_keys(self) -> dict[str, tuple[bool, str]]:
        policy, rollout = self.policy, self.rollout
        no_critic = (not policy.has_critic, "policy.advantage=gae")
        of_critic = ("gae_lambda", "whiten", "critic", "critic_init", "value_coef", "value_clip", "critic_lr")
        no_cut = rollout.mask_truncated and not ADVANTAGES[policy.advantage].needs_groups
        no_discount = (not ADVANTAGES[policy.advantage].discounts, "an advantage that discounts (gae, reinforce_pp)")
        no_kl = (policy.kl_coef == 0, "policy.kl_coef")
        no_clip = (not POLICY_LOSSES[policy.loss].clips, "a loss that clips")
        of_tokens = ("train.label_smoothing", "train.z_loss", "train.global_batch_tokens", "model.neftune_alpha")
        return (
            super()._idle_keys()
            | {f"policy.{name}": no_critic for name in of_critic}
            | {"policy.gamma": no_discount}
            | {f"policy.{name}": no_kl for name in ("kl_placement", "kl_estimator", "kl_target", "kl_budget")}
            | {f"policy.{name}": no_clip for name in ("clip_low", "clip_high")}
            | {"rollout.eval_prompts": (not self._evaluates, "held-out data")}
            | {"eval.tokens": (True, "stored tokens (rollouts use rollout.eval_prompts)")}
            | {"eval.sample_tokens": (True, "stored answers (rollouts use rollout.max_new_tokens)")}
            | {"policy.kl_horizon": (policy.kl_target is None, "policy.kl_target")}
            | {"rollout.overlong_penalty": (rollout.overlong_buffer_tokens is None, "rollout.overlong_buffer_tokens")}
            | {"rollout.on_weak_reward": (not rollout.reward_models(), "a reward of the name model")}
            | {"rollout.sandbox": (not rollout.names("code_tests"), "the reward code_tests")}
            | {"rollout.missing_eos_penalty": (no_cut, "responses that are cut in the loss, or compared in a group")}
            | {"rollout.reward_seconds": (not rollout.has_functions(), "a reward function of yours")}
            | {"rollout.dynamic_sampling": (not ADVANTAGES[policy.advantage].needs_groups, "a group's advantage")}
            | dict.fromkeys(of_tokens, (True, "a loss over stored tokens"))
        )

    def features(self) -> dict[str, bool]:
        """As for every recipe that tunes, and rollouts."""
        return super().features() | {"rollouts": True}
