"""Reinforcement learning: prompts and rewards -> a policy, by PPO and its family.

    llmtrain rlhf ppo_smollm2_brief data.train=my_prompts.jsonl
    accelerate launch -m llmtrain rlhf my.yaml data.train=my_prompts.jsonl rollout.rewards=[my_reward.py:score]

The loop pulls minibatches from a `RolloutSource`, which samples responses with the weights of that moment:

    prompts -> Sampler (generator, rewards) -> RolloutSource (policy, critic, reference) -> PolicyObjective
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from llmtrain.config.recipes import PolicyStageConfig
from llmtrain.data.chat.tokenizer import open_chat_tokenizer
from llmtrain.data.formats.prompts import Prompt, load_prompts
from llmtrain.data.loader.order import SampleOrder
from llmtrain.eval.generation import HeldOutScore
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.flops import training_flops
from llmtrain.models.folders.open import model_folder
from llmtrain.models.load import load_pretrained
from llmtrain.models.wrappers.critic_init import CriticStart
from llmtrain.models.wrappers.roles import build_roles
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.recipes.model import export_spec, given_model, new_tokens, pinned_facts, trained_report
from llmtrain.recipes.trainer import Run, Training, close, open_run, train
from llmtrain.rewards.model import model_facts, model_reward, reward_model_path
from llmtrain.rewards.score import WeightedReward, load_rewards, reward_weight, score_responses, with_unique_names
from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.experience import Roles
from llmtrain.rollout.local.generator import LocalGenerator
from llmtrain.rollout.sample import Sampler
from llmtrain.rollout.sample_log import SAMPLES_FILE, SampleLog, gather_rows, readable
from llmtrain.rollout.source import RolloutSource
from llmtrain.train.stop_signal import StopSignal


def run_policy(config: PolicyStageConfig, *, last: bool = True) -> None:
    """Train a policy on the rewards of its own responses."""
    with open_run(config) as run:
        _train(run, last)


def _train(run: Run[PolicyStageConfig], last: bool) -> None:
    config, runtime, data, rollout = run.config, run.runtime, run.config.data, run.config.rollout

    rewards = computed_rewards(config)  # first: a wrong name should fail before a model loads
    base = given_model(config)
    chat = open_chat_tokenizer(base, config.tokenizer, chat_template=data.chat_template, loss_on="completion")
    prompts = load_prompts(data, chat.tokenizer, max_new_tokens=rollout.max_new_tokens, report=runtime.say)
    weights = [source.weight for source in data.train if source.weight is not None]
    order = SampleOrder([len(source) for source in prompts.train], weights or None, config.run.seed)

    def prompt_at(position: int) -> Prompt:
        source, index = order(position)
        return prompts.train[source][index]

    new_ids = new_tokens(run, base, chat.tokenizer, chat.new_token_ids)
    model = load_pretrained(
        base.model_copy(update={"dropout": 0.0}),  # or the first ratio would not be 1
        chat.tokenizer,
        max_seq_len=data.max_seq_len,
        new_token_ids=new_ids,
        report=runtime.say,
    )
    shards = runtime.shards_parameters
    roles = build_roles(config, model, new_ids, critic_start(config), runtime, shards_parameters=shards)
    module = roles.module
    runtime.say(f"{roles.description}; {trained_report(run, module)}")
    has_adapter = config.adapter.kind != "none"
    # With an adapter the base stays frozen, so a reward model on the same base shares its weights, unless sharded.
    rewards += reward_models(run, model if has_adapter and not shards else None)
    facts = base_facts(model)

    stop = StopSignal()
    # Where the sampler's logprobs are trained on, it gives the values too: a value head on the trunk costs nothing.
    value_head = module.trunk_head if rollout.old_logprobs == "sampler" else None
    generator = LocalGenerator(model, runtime, lambda: stop.requested is not None, value_head)
    sampler = Sampler(
        generator=generator,
        prompt_at=prompt_at,
        score=partial(score_responses, rewards, chat.tokenizer),
        sampling=Sampling(
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            stop_ids=chat.encoder.end_of_turn_ids,
            seed=config.run.seed,
        ),
        config=rollout,
        ranks=runtime,
    )
    samples = SampleLog(run.folder / SAMPLES_FILE, runtime.say)

    def record(number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        gathered = gather_rows([readable(row, chat.tokenizer) for row in rows], runtime)
        if run.may_write():
            samples.write(number, gathered)

    assert config.train.steps is not None
    source = RolloutSource(
        Roles(module, roles.reference, split_critic=module.critic is not None and runtime.supports_partial_backward),
        sampler,
        config.policy,
        num_steps=config.train.steps,
        microbatch_tokens=config.train.microbatch_tokens,
        record=record,
        report=runtime.say,
    )
    held_out = prompts.eval
    if rollout.eval_prompts is not None:
        held_out = sorted(held_out, key=Prompt.digest)[: rollout.eval_prompts]

    training = Training(
        module=module,
        objective=PolicyObjective(config.policy, rollout.max_new_tokens),
        source=source,
        num_steps=config.train.steps,
        evaluate=HeldOutScore(held_out, generator, sampler.score, sampler.sampling, runtime) if held_out else None,
        flops=training_flops(model),
        ledger=prompts.ledger.to_dict(),
        account=lambda progress: {"steps": progress.step, "tokens_trained": progress.tokens},
        facts=replace(
            pinned_facts(run, model, chat.tokenizer, prompts, base=facts),
            rewards=[reward.facts for reward in rewards],
            critic=critic_facts(config),
        ),
        spec=export_spec(run, model, chat),
        stop=stop,
        critic_lr=config.policy.critic_lr,
    )
    trained = train(run, training)
    close(run, training, trained, last=last)


def computed_rewards(config: PolicyStageConfig) -> list[WeightedReward]:
    """The rewards that are functions. Raises ValueError for one that cannot be used, or if there is no reward."""
    if not config.rollout.rewards:
        raise ValueError("rollout.rewards names no reward")
    return load_rewards(config.rollout.rewards)


def reward_models(run: Run[PolicyStageConfig], base: PreTrainedModel | None) -> list[WeightedReward]:
    """The rewards that are trained models, which share equal frozen weights with `base`.

    Raises ValueError for a folder that holds no reward model.
    """
    config, runtime = run.config, run.runtime
    max_tokens, refuses = config.train.microbatch_tokens, config.rollout.on_weak_reward == "refuse"
    return with_unique_names(
        [
            model_reward(spec, place, runtime.device, max_tokens, runtime.say, base, refuses_weak=refuses)
            for place, spec in config.rollout.reward_models().items()
        ]
    )


def critic_start(config: PolicyStageConfig) -> CriticStart | None:
    """The reward model that the critic starts as; None: at zero. Raises ValueError if a reward names no folder."""
    given, key = config.policy.critic_init, f"policy.critic_init={config.policy.critic_init}"
    if given == "zero" or not config.policy.has_critic:
        return None
    if given != "reward":
        return CriticStart(given, 1.0, key)
    ((place, spec),) = config.rollout.reward_models().items()
    return CriticStart(reward_model_path(spec, place), reward_weight(spec, place), key)


def critic_facts(config: PolicyStageConfig) -> dict[str, Any] | None:
    """What the critic starts as, for a resumed run to find it again; None: there is no critic."""
    if not config.policy.has_critic:
        return None
    start = critic_start(config)
    if start is None or config.policy.critic_init == "reward":  # a reward's own facts are pinned
        return {"init": config.policy.critic_init}
    return {"init": "folder", **model_facts(model_folder(start.path))}
