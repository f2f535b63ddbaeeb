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

from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerState

from llmtrain.config.recipes import PolicyStageConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.data.loader.order import SampleOrder
from llmtrain.data.prompts import Prompt, Prompts, load_prompts
from llmtrain.eval.before_after.answers import ANSWERS, Answers
from llmtrain.eval.before_after.measure import Measurement
from llmtrain.eval.generation import EVAL_ROLLOUT, HeldOutScore
from llmtrain.models.context import require_fixed_rope
from llmtrain.models.flops import training_flops
from llmtrain.models.folders.reward import open_classifier, reward_folder
from llmtrain.models.stop_texts import stop_texts
from llmtrain.models.stops import stops_of
from llmtrain.models.wrappers.critic_init import CriticStart
from llmtrain.models.wrappers.roles import build_roles
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.protocols import Report
from llmtrain.recipes.before_after import before_after
from llmtrain.recipes.model import (
    CHECKING,
    export_spec,
    given_model,
    load_base,
    open_chat,
    pinned_facts,
    start_facts,
    trained_report,
)
from llmtrain.recipes.tasks import with_tasks
from llmtrain.recipes.trainer import Run, Training, close, in_run, train
from llmtrain.rewards.batch import WeightedReward
from llmtrain.rewards.calls import Patience
from llmtrain.rewards.load import load_rewards, reward_weight, with_unique_names
from llmtrain.rewards.model import model_facts, model_reward, reward_model_path
from llmtrain.rewards.row import Prompt as RewardPrompt
from llmtrain.rewards.row import Row
from llmtrain.rewards.score import score_responses
from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.experience import Roles
from llmtrain.rollout.local.generator import LocalGenerator
from llmtrain.rollout.sample import Sampler
from llmtrain.rollout.sample_log import SampleLog, gather_rows, readable
from llmtrain.rollout.source import Record, RolloutSource
from llmtrain.system.run_files import SAMPLES_FILE
from llmtrain.system.stop_signal import StopSignal
from llmtrain.tasks.load import reward_of


def run_policy(config: PolicyStageConfig, stop: StopSignal, *, last: bool = True) -> None:
    """Train a policy on the rewards of its own responses."""
    in_run(config, stop, _train, last=last)


def _train(run: Run[PolicyStageConfig]) -> None:
    config, runtime, rollout = run.config, run.runtime, run.config.rollout

    # First: a wrong name should fail before a model loads.
    rewards = load_rewards(rollout.rewards, sandbox=rollout.sandbox, report=runtime.say, task_reward=reward_of)
    base = given_model(config)
    chat = open_chat(config, base, report=runtime.say)
    prompts = load_prompts(config.data, chat.tokenizer, max_new_tokens=rollout.max_new_tokens, report=runtime.say)
    order = prompt_order(config, prompts)

    def prompt_at(position: int) -> Prompt:
        source, index = order(position)
        return prompts.train[source][index]

    base = base.model_copy(update={"dropout": 0.0})  # or the first ratio would not be 1
    loaded = load_base(run, base, chat)
    model = loaded.model
    require_fixed_rope(model.config, config.data.max_seq_len)
    runtime.say(CHECKING)
    # With an adapter the base stays frozen, so a reward model on the same base shares its weights, unless sharded.
    shared = model if loaded.plan is not None and runtime.sharding == "none" else None
    first = prompt_at(0)
    start = critic_start(config, runtime.say)
    roles = build_roles(config, model, loaded.plan, start, runtime, sharding=runtime.sharding)
    module = roles.module
    runtime.say(f"{roles.description}; {trained_report(run, module)}")
    of_critic = critic_facts(config, start)
    rewards += reward_models(run, shared, (first.messages, first.row), start)
    del start  # the memory of a reward model that the critic alone needed
    facts = start_facts(loaded, model)

    assert config.train.steps is not None
    num_steps = config.train.steps
    # Where the sampler's logprobs are trained on, it gives the values too: a value head on the trunk costs nothing.
    value_head = module.trunk_head if rollout.old_logprobs == "sampler" else None

    def trainer_state() -> TrainerState:
        return TrainerState(epoch=source.epoch, global_step=source.step, max_steps=num_steps)

    sampler = Sampler(
        generator=LocalGenerator(model, runtime, lambda: run.stop.requested is not None, value_head),
        prompt_at=prompt_at,
        num_prompts=order.epoch_size,
        score=partial(
            score_responses,
            rewards,
            chat.tokenizer,
            patience=Patience(rollout.reward_seconds, rollout.reward_retries, rollout.on_reward_error),
            state=trainer_state,
        ),
        sampling=sampling_of(run, model, chat),
        config=rollout,
        ranks=runtime,
    )
    source = RolloutSource(
        Roles(module, roles.reference, split_critic=module.critic is not None and runtime.supports_partial_backward),
        sampler,
        config.policy,
        num_steps=num_steps,
        microbatch_tokens=config.train.microbatch_tokens,
        record=recorder(run, chat.tokenizer),
        report=runtime.say,
    )
    held_out_score, own = on_held_out(run, prompts, sampler, chat.tokenizer)
    training = Training(
        module=module,
        objective=PolicyObjective(config.policy, rollout.max_new_tokens),
        source=source,
        num_steps=num_steps,
        evaluate=with_tasks(run, held_out_score, model, chat.tokenizer, chat.encoder.end_of_turn_ids, module),
        flops=training_flops(model),
        ledger=prompts.ledger.to_dict(),
        account=lambda progress: {"steps": progress.step, "tokens_trained": progress.tokens},
        facts=replace(
            pinned_facts(run, model, chat.tokenizer, prompts, base=facts),
            rewards=[reward.facts for reward in rewards],
            critic=of_critic,
        ),
        spec=export_spec(run, base, loaded, chat),
        before_after=before_after(run, model, chat, module, own),
        critic_lr=config.policy.critic_lr,
    )
    trained = train(run, training)
    close(run, training, trained)


def prompt_order(config: PolicyStageConfig, prompts: Prompts) -> SampleOrder:
    """The order in which prompts are sampled, by the weights of their sources."""
    data = config.data
    weights = [source.weight for source in data.train if source.weight is not None]
    num_prompts = [len(source) for source in prompts.train]
    return SampleOrder(num_prompts, weights or None, config.run.seed, as_given=data.order == "given")


def sampling_of(run: Run[PolicyStageConfig], model: PreTrainedModel, chat: ChatTokenizer) -> Sampling:
    """How responses are sampled; what ends one is reported."""
    rollout, stops = run.config.rollout, stops_of(model, chat.tokenizer, chat.encoder.end_of_turn_ids)
    shown = [str(chat.tokenizer.decode([id_])) or f"id {id_}" for id_ in stops.ids]
    shown += [f"the text {text!r}" for text in stops.texts]
    run.runtime.say(f"a response ends at {', '.join(shown)}")
    return Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop_ids=stops.ids,
        stop_texts=stop_texts(stops.texts, chat.tokenizer),
        seed=run.config.run.seed,
    )


def recorder(run: Run[PolicyStageConfig], tokenizer: PreTrainedTokenizerFast) -> Record:
    """What keeps the samples of rollouts in the run's folder."""
    samples = SampleLog(run.folder / SAMPLES_FILE, run.runtime.say)

    def record(number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        gathered = gather_rows([readable(row, tokenizer) for row in rows], run.runtime)
        if run.may_write():
            samples.write(number, gathered)

    return record


def on_held_out(
    run: Run[PolicyStageConfig], prompts: Prompts, sampler: Sampler, tokenizer: PreTrainedTokenizerFast
) -> tuple[HeldOutScore | None, dict[str, Measurement]]:
    """What is measured on held-out prompts: at each evaluation, and before and after training; None and {} if there
    are none."""
    config, runtime, held_out = run.config, run.runtime, prompts.eval
    if config.rollout.eval_prompts is not None:
        held_out = sorted(held_out, key=Prompt.digest)[: config.rollout.eval_prompts]
    if not held_out:
        return None, {}
    generator, score = sampler.generator, sampler.score
    at_evaluations = HeldOutScore(held_out, generator, score, sampler.sampling, runtime, tokenizer, config.eval.samples)
    asked, sampling = held_out[: config.eval.before_after], replace(sampler.sampling, rollout=EVAL_ROLLOUT)
    answers = Answers(asked, generator, sampling, tokenizer, runtime, score)
    return at_evaluations, {ANSWERS: answers} if asked else {}


def reward_models(
    run: Run[PolicyStageConfig],
    base: PreTrainedModel | None,
    example: tuple[RewardPrompt, Row],
    start: CriticStart | None = None,
) -> list[WeightedReward]:
    """The rewards that are trained models, which share equal frozen weights with `base`, tried on an `example`.

    `start`: what the critic started as: the one reward model, open already, if `policy.critic_init` is `reward`.
    Raises ValueError for a folder that holds no reward model, and for one that cannot score the run's conversations.
    """
    config, runtime = run.config, run.runtime
    max_tokens, refuses = config.train.microbatch_tokens, config.rollout.on_weak_reward == "refuse"
    opened = start.found if start is not None and config.policy.critic_init == "reward" else None
    return with_unique_names(
        [
            model_reward(
                spec,
                place,
                runtime.device,
                max_tokens,
                runtime.say,
                base,
                refuses_weak=refuses,
                example=example,
                max_document_tokens=config.data.max_seq_len,
                found=opened,
            )
            for place, spec in config.rollout.reward_models().items()
        ]
    )


def critic_start(config: PolicyStageConfig, report: Report) -> CriticStart | None:
    """The reward model that the critic starts as; None: at zero. Raises ValueError if there is none."""
    given, key = config.policy.critic_init, f"policy.critic_init={config.policy.critic_init}"
    if given == "zero" or not config.policy.has_critic:
        return None
    path, weight, revision = given, 1.0, None
    if given == "reward":
        ((place, spec),) = config.rollout.reward_models().items()
        path, weight, revision = reward_model_path(spec, place), reward_weight(spec, place), spec.get("revision")
    return CriticStart(path, weight, key, open_classifier(reward_folder(path, revision), report))


def critic_facts(config: PolicyStageConfig, start: CriticStart | None) -> dict[str, Any] | None:
    """What the critic starts as, for a resumed run to find it again; None: there is no critic."""
    if not config.policy.has_critic:
        return None
    if start is None or config.policy.critic_init == "reward":  # a reward's own facts are pinned
        return {"init": config.policy.critic_init}
    return {"init": "folder", **model_facts(start.found)}
