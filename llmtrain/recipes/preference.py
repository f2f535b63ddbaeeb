"""The offline stage of `recipes/rlhf.py`: preferences to a policy, by DPO and its kin.

The reference is the model that the run starts from. It speaks once, before the first step; only the policy trains.
"""

from __future__ import annotations

from functools import partial

from llmtrain.config.recipes import PreferenceStageConfig
from llmtrain.config.sections import ChatDataConfig
from llmtrain.data.chat.tokenizer import open_chat_tokenizer
from llmtrain.data.packing.answers import build_answer_stores
from llmtrain.data.packing.pairs import build_preference_stores
from llmtrain.data.tokenize import tokenizer_fingerprint
from llmtrain.eval.reference_logprobs import reference_logprobs
from llmtrain.models.adapters.lora import OPTIMIZER_BYTES, adapter_report, add_adapter, base_fingerprint
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.models.load import flops_per_token, hub_commit, load_pretrained, parameters_by_role
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.checks import shares_prompts
from llmtrain.recipes.preference_parts import answer_parts, pair_parts
from llmtrain.recipes.trainer import open_training, train, with_loss_here
from llmtrain.runs.export import export_tuned
from llmtrain.runs.folder import mark_finished, record_ledger
from llmtrain.system.device import fuses_layers


def run_preference_stage(config: PreferenceStageConfig, *, last: bool = True) -> None:
    """Build the parts, ask the reference, run the loop, export the adapter or the model."""
    folder, runtime = open_training(config)
    compared = ChatDataConfig(train=config.data.train, chat_template=config.data.chat_template, loss_on="completion")
    chat = open_chat_tokenizer(config.model, config.tokenizer, compared, resolved_path(config.model.path))
    by_answer, max_seq_len = config.preference.loss == "kto", config.data.max_seq_len
    build = build_answer_stores if by_answer else build_preference_stores
    stores = build(config.data, chat.encoder, report=runtime.say)

    model = load_pretrained(config.model, chat.tokenizer, max_seq_len=max_seq_len, new_token_ids=chat.new_token_ids)
    if config.adapter.kind != "none":
        add_adapter(model, config.adapter, chat.new_token_ids, config.run.seed)
        if fuses_layers(runtime.device) and not runtime.shards_parameters:
            fuse_adapters(model)
    runtime.say(adapter_report(model, OPTIMIZER_BYTES[config.optim.name]))
    fingerprint = base_fingerprint(model)
    checked = with_loss_here(config, model, runtime)
    shared = not by_answer and shares_prompts(model, checked.kernel, max_seq_len, runtime.device, runtime.say)
    module = ActorCritic(checked, temperature=1.0, trains_entropy=False)
    ask = partial(
        reference_logprobs,
        module,
        packs_per_microbatch=config.train.microbatch_tokens // max_seq_len,
        base_fingerprint=fingerprint,
        runtime=runtime,
    )
    if by_answer:
        parts = answer_parts(config, stores, module, ask, runtime)
    else:
        parts = pair_parts(config, stores, shared, ask, runtime)
    plan = parts.plan
    trained = train(
        config,
        folder,
        runtime,
        module,
        parameters_by_role(model),
        objective=parts.objective,
        source=parts.source,
        state_without_step=parts.stored.state_without_step,
        num_steps=plan.num_steps,
        evaluate=parts.evaluate if plan.num_eval_packs else None,
        flops_per_token=flops_per_token(model, plan.mean_segment_tokens, plan.trained_share),
        facts={
            "model_revision": hub_commit(model.config),
            "base_fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(chat.tokenizer),
            "stores": stores.names,
            "shared_prompts": shared,
        },
    )
    if runtime.is_main:
        account = plan.account(trained.progress.step, trained.progress.tokens, parts.stored.num_skipped)
        record_ledger(folder, stores.ledger.to_dict(), account)
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
