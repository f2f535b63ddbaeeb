"""The policy stage of `recipes/rlhf.py`: prompts and rewards to a policy, by PPO and its family.

The roles stand on one base where they can: with an adapter the reference is the base itself, and a critic with a
trunk of its own has only its own adapter. With all weights each role is a model of its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmtrain.config.recipes import PolicyStageConfig
from llmtrain.config.sections import ChatDataConfig
from llmtrain.data.chat.tokenizer import open_chat_tokenizer
from llmtrain.data.formats.prompts import Prompt, load_prompts
from llmtrain.data.loader.order import SampleOrder
from llmtrain.data.tokenize import tokenizer_fingerprint
from llmtrain.eval.generation import HeldOutScore
from llmtrain.models.adapters.lora import adapter_report, add_adapter, base_fingerprint
from llmtrain.models.adapters.weight_sharing import frozen_copy, shared_copy
from llmtrain.models.cpu.layers import fuse_layers
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.models.folders.open import model_folder
from llmtrain.models.folders.reward import load_reward_model
from llmtrain.models.load import flops_per_token, hub_commit, load_pretrained, parameters_by_role
from llmtrain.models.wrappers.actor_critic import ActorCritic, ValueHead
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.critic_init import start_as_reward
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.protocols import Role
from llmtrain.recipes.trainer import open_training, train, with_loss_here
from llmtrain.rewards.model import reward_model_path, reward_model_term
from llmtrain.rewards.score import Scores, Term, load_terms, named_apart, score, term_weight
from llmtrain.rollout.local.generate import Generated
from llmtrain.rollout.local.sampling import Sampling
from llmtrain.rollout.sample_log import SampleLog
from llmtrain.rollout.source import Roles, RolloutSource
from llmtrain.runs.export import export_tuned
from llmtrain.runs.folder import mark_finished, record_ledger
from llmtrain.system.device import fuses_layers
from llmtrain.train.runtime import Runtime
from llmtrain.train.stop_signal import StopSignal


def run_policy_stage(config: PolicyStageConfig, *, last: bool = True) -> None:
    """Build the parts, run the loop, export the policy."""
    folder, runtime = open_training(config)
    rollout, path, has_adapter = config.rollout, resolved_path(config.model.path), config.adapter.kind != "none"
    terms = computed_rewards(config)
    rendered = ChatDataConfig(train=config.data.train, chat_template=config.data.chat_template, loss_on="completion")
    chat = open_chat_tokenizer(config.model, config.tokenizer, rendered, path)
    prompts = load_prompts(config.data, chat.tokenizer, max_new_tokens=rollout.max_new_tokens, report=runtime.say)
    weights = [source.weight for source in config.data.train if source.weight is not None]
    order = SampleOrder([len(source) for source in prompts.train], weights or None, config.run.seed)

    def prompt_at(position: int) -> Prompt:
        source, index = order(position)
        return prompts.train[source][index]

    model = load_pretrained(
        config.model.model_copy(update={"dropout": 0.0}),  # or the first ratio would not be 1
        chat.tokenizer,
        max_seq_len=config.data.max_seq_len,
        new_token_ids=chat.new_token_ids,
    )
    module, reference, parameters = build_roles(config, model, chat.new_token_ids, runtime)
    terms += reward_models(config, model if has_adapter and not runtime.shards_parameters else None, runtime)
    fingerprint = base_fingerprint(model) if has_adapter else None
    sampling = Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop_ids=chat.encoder.end_of_turn_ids,
        seed=config.run.seed,
    )
    scored = partial(score_responses, terms, chat.tokenizer)
    stop, samples = StopSignal(), SampleLog(folder / "samples.jsonl", runtime.say)

    def is_stopped() -> bool:
        return stop.requested is not None

    def record(number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        told = of_all_ranks([readable(row, chat.tokenizer) for row in rows], runtime)
        if runtime.is_main:
            samples.write(number, told)

    assert config.train.steps is not None
    source = RolloutSource(
        Roles(model, module, reference),
        prompt_at,
        scored,
        config.policy,
        rollout,
        sampling,
        num_steps=config.train.steps,
        microbatch_tokens=config.train.microbatch_tokens,
        ranks=runtime,
        should_stop=is_stopped,
        record=record,
        say=runtime.say,
        critic_apart=module.critic is not None and runtime.supports_partial_backward,
    )
    held_out = prompts.eval
    if rollout.eval_prompts is not None:
        held_out = sorted(held_out, key=Prompt.digest)[: rollout.eval_prompts]
    evaluate = HeldOutScore(held_out, model, scored, sampling, runtime, is_stopped) if held_out else None
    trained = train(
        config,
        folder,
        runtime,
        module,
        parameters,
        objective=PolicyObjective(config.policy, rollout.max_new_tokens),
        source=source,
        num_steps=config.train.steps,
        evaluate=evaluate,
        flops_per_token=flops_per_token(model, rollout.max_new_tokens),
        facts={
            "model_revision": hub_commit(model.config),
            "base_fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(chat.tokenizer),
        },
        stop=stop,
        critic_lr=config.policy.critic_lr,
    )
    if runtime.is_main:
        account = {"steps": trained.progress.step, "tokens_trained": trained.progress.tokens}
        record_ledger(folder, prompts.ledger.to_dict(), account)
        if trained.checkpoint is not None:
            exported = export_tuned(
                folder,
                config,
                trained.checkpoint,
                shape=model.config,
                tokenizer=chat.tokenizer,
                stop_ids=chat.encoder.end_of_turn_ids,
                fingerprint=fingerprint,
            )
            runtime.say(f"{trained.outcome}: {exported}")
            mark_finished(folder, config)
    runtime.finish(leave=last or trained.checkpoint is None)


def computed_rewards(config: PolicyStageConfig) -> list[Term]:
    """The rewards of the sum that are no models. Raises ValueError for one that cannot be used."""
    if not config.rollout.rewards:
        raise ValueError("rollout.rewards names no reward")
    return load_terms(config.rollout.rewards)


def reward_models(config: PolicyStageConfig, base: PreTrainedModel | None, runtime: Runtime) -> list[Term]:
    """The trained models of the sum, on the policy's base where it is theirs; ValueError for one that is not there."""
    max_tokens, refuses = config.train.microbatch_tokens, config.rollout.on_weak_reward == "refuse"
    return named_apart(
        [
            reward_model_term(spec, place, runtime.device, max_tokens, runtime.say, base, refuses_weak=refuses)
            for place, spec in config.rollout.reward_models().items()
        ]
    )


def build_roles(
    config: PolicyStageConfig, model: PreTrainedModel, new_token_ids: Sequence[int], runtime: Runtime
) -> tuple[ActorCritic, ActorCritic | None, dict[Role, list[nn.Parameter]]]:
    """Policy and critic as one module, the reference, and what is trained by role; says what was chosen."""
    policy, has_adapter = config.policy, config.adapter.kind != "none"
    fuses = fuses_layers(runtime.device) and not runtime.shards_parameters
    if fuses:
        fuse_layers(model)
    has_critic = policy.advantage == "gae"
    reference_model: PreTrainedModel | None = None
    critic_model: PreTrainedModel | None = None
    if policy.kl_coef > 0:
        reference_model = shared_copy(model) if has_adapter else frozen_copy(model)
    if has_critic and policy.critic == "separate":
        critic_model = shared_copy(model) if has_adapter else copy.deepcopy(model)
    for trained in (model, critic_model):
        if has_adapter and trained is not None:
            add_adapter(trained, config.adapter, new_token_ids, config.run.seed)
            if fuses:
                fuse_adapters(trained)
    checked = with_loss_here(config, model, runtime)
    width = model.config.get_text_config().hidden_size
    head = ValueHead(width).to(runtime.device) if has_critic else None
    trunk = None if critic_model is None else critic_model.base_model.to(runtime.device)
    if head is not None and policy.critic_init != "zero":
        runtime.say(start_critic(config, head, trunk))
    module = ActorCritic(
        checked, config.rollout.temperature, head, trunk, trains_entropy=config.policy.entropy_coef > 0
    )
    reference = None
    if reference_model is not None:
        nn.Module.to(reference_model, runtime.device)
        reference_loss = CausalLMLoss(reference_model, checked.kernel, checked.own_logits)
        reference = ActorCritic(reference_loss, config.rollout.temperature, trains_entropy=False)
        reference.requires_grad_(False).eval()
    parameters = parameters_by_role(model)
    of_critic = [*(head.parameters() if head is not None else ()), *(trunk.parameters() if trunk is not None else ())]
    mine = {id(parameter) for group in parameters.values() for parameter in group}
    parameters["critic"] = [p for p in of_critic if p.requires_grad and id(p) not in mine]
    roles = ["policy with a value head" if has_critic and trunk is None else "policy"]
    roles += ["critic with a trunk of its own"] if trunk is not None else []
    roles += [f"reference on {'the same base' if has_adapter else 'a copy of the weights'}"] if reference else []
    runtime.say(f"{', '.join(roles)}; {adapter_report(module)}")
    return module, reference, parameters


def start_critic(config: PolicyStageConfig, head: ValueHead, trunk: nn.Module | None) -> str:
    """Let a critic start as a reward model, and say so. Raises ValueError where they do not fit."""
    given, weight = config.policy.critic_init, 1.0
    path = given
    if given == "reward":
        ((place, spec),) = config.rollout.reward_models().items()
        path, weight = reward_model_path(spec, place), term_weight(spec, place)
    reward, _ = load_reward_model(model_folder(path))
    start_as_reward(head, trunk, reward, weight, f"policy.critic_init={given}")
    return f"the critic{' and its trunk start' if trunk is not None else ' starts'} as the reward model {path}"


def score_responses(
    terms: Sequence[Term],
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    responses: Sequence[Generated],
    sample_ids: Sequence[int],
) -> Scores:
    """What the rewards say of each response, as text. Raises ValueError naming the sample at fault."""
    texts = [response_text(response, tokenizer) for response in responses]
    given: list[Any] = [prompt.messages for prompt in prompts]
    return score(terms, given, texts, [prompt.row for prompt in prompts], sample_ids)


def response_text(response: Generated, tokenizer: PreTrainedTokenizerFast) -> str:
    """A response without the token that stopped it; special tokens within it are shown, so that none goes unseen."""
    ids = response.response_ids[:-1] if response.stopped else response.response_ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def readable(sample: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A sample as `samples.jsonl` holds it."""
    prompt, response = sample["prompt"], sample["response"]
    return {**sample, "prompt": prompt.messages, "response": response_text(response, tokenizer)}


def of_all_ranks(rows: Sequence[Mapping[str, Any]], runtime: Runtime) -> list[dict[str, Any]]:
    """The samples of every rank in the order of their numbers, on the main process; none on the others. Collective."""
    coded = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    parts = [json.loads(part.numpy().tobytes()) for part in runtime.gather_to_main(coded)]
    return sorted((row for part in parts for row in part), key=lambda row: int(row["sample"]))
