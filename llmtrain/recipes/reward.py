"""The reward stage of `recipes/rlhf.py`: preference pairs to a model that scores answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from llmtrain.config.recipes import RewardStageConfig
from llmtrain.config.sections import ChatDataConfig
from llmtrain.data.chat.tokenizer import open_chat_tokenizer
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.pairs import PairPacking, build_preference_stores, collate_pairs, has_margins
from llmtrain.data.tokenize import tokenizer_fingerprint
from llmtrain.eval.pairs import HeldOutPairs, reward_card
from llmtrain.models.adapters.lora import adapter_report, add_adapter, base_fingerprint
from llmtrain.models.cpu.layers import fuse_layers
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.models.folders.reward import (
    CARD,
    beats_chance,
    export_reward_adapter,
    export_reward_model,
    merge_reward_adapter,
)
from llmtrain.models.load import attention_dropout, flops_per_token, hub_commit, load_pretrained
from llmtrain.models.wrappers.checks import shares_prompts
from llmtrain.models.wrappers.reward_model import pooling_pad_id, reward_parameters_by_role, score_model, with_scores
from llmtrain.objectives.reward import PairwiseReward
from llmtrain.recipes.trainer import open_training, train
from llmtrain.runs.folder import Write, export_dtype, export_run, mark_finished, record_ledger
from llmtrain.system.device import attention_kernel, fuses_layers
from llmtrain.system.files import write_json
from llmtrain.train.checkpoint import Checkpoint
from llmtrain.train.run_log import METRICS_FILE


def run_reward_stage(config: RewardStageConfig, *, last: bool = True) -> None:
    """Build the parts, run the loop, export the adapter or the model with its card."""
    folder, runtime = open_training(config)
    path, has_adapter = resolved_path(config.model.path), config.adapter.kind != "none"
    compared = ChatDataConfig(train=config.data.train, chat_template=config.data.chat_template, loss_on="completion")
    chat = open_chat_tokenizer(config.model, config.tokenizer, compared, path)
    pad_token_id = pooling_pad_id(chat.tokenizer, chat.encoder.end_of_turn_ids)
    stores = build_preference_stores(config.data, chat.encoder, report=runtime.say)
    for given, store in zip(config.data.train, stores.train, strict=True):
        if config.reward.margin and not has_margins(store):
            raise ValueError(f"reward.margin: {given.path} has rows without a margin; give them one, or leave it out")

    causal = load_pretrained(
        config.model, chat.tokenizer, max_seq_len=config.data.max_seq_len, new_token_ids=chat.new_token_ids
    )
    if has_adapter:
        add_adapter(causal, config.adapter, chat.new_token_ids, config.run.seed)
    fingerprint = base_fingerprint(causal) if has_adapter else None
    model = score_model(causal, config.model, pad_token_id=pad_token_id, seed=config.run.seed)
    if fuses_layers(runtime.device) and not runtime.shards_parameters:
        fuse_layers(model)
        fuse_adapters(model)
    runtime.say(adapter_report(model))
    kernel = attention_kernel(config.model.attention, runtime.device, runtime.dtype, attention_dropout(model.config))
    module = with_scores(model, kernel, config.data.max_seq_len, runtime.device)

    shared = shares_prompts(model, kernel, config.data.max_seq_len, runtime.device, runtime.say)
    packed = partial(PairPacking, max_seq_len=config.data.max_seq_len, share_prompts=shared)
    train_packs, eval_packs = ([packed(store) for store in split] for split in (stores.train, stores.eval))
    plan = plan_data(
        config.data,
        config.train,
        config.eval,
        train_packs,
        eval_packs,
        eval_bytes=None,
        seed=config.run.seed,
        world_size=runtime.world_size,
    )
    source = plan.batches_by(collate_pairs, runtime.rank, runtime.world_size)
    held_out = HeldOutPairs(plan, runtime.rank, runtime.world_size, runtime.device, runtime.gather_floats)
    trained = train(
        config,
        folder,
        runtime,
        module,
        reward_parameters_by_role(model),
        objective=PairwiseReward(config.reward.margin, config.reward.centering),
        source=source,
        state_without_step=source.state_without_step,
        num_steps=plan.num_steps,
        evaluate=held_out if plan.num_eval_packs else None,
        flops_per_token=flops_per_token(model, plan.mean_segment_tokens),
        facts={
            "model_revision": hub_commit(model.config),
            "base_fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(chat.tokenizer),
            "stores": stores.names,
            "shared_prompts": shared,
        },
    )
    if runtime.is_main:
        account = plan.account(trained.progress.step, trained.progress.tokens, source.num_skipped)
        record_ledger(folder, stores.ledger.to_dict(), account)
        if trained.checkpoint is not None:
            runtime.say(reward_verdict(config, folder, trained.checkpoint))
            write: Write = partial(
                export_reward_model,
                shape=model.config,
                tokenizer=chat.tokenizer,
                dtype=export_dtype(config.train),
                trust_remote_code=config.model.trust_remote_code,
            )
            if has_adapter:
                write = partial(
                    export_reward_adapter,
                    shape=model.config,
                    tokenizer=chat.tokenizer,
                    adapter=config.adapter,
                    base_path=path,
                    base_revision=config.model.revision,
                    fingerprint=fingerprint,
                    trust_remote_code=config.model.trust_remote_code,
                )
            runtime.say(f"{trained.outcome}: {export_run(folder, config, trained.checkpoint, write)}")
            if config.adapter.merge:
                merge_reward_adapter(folder / "model", folder / "merged", config.model.trust_remote_code)
                runtime.say(f"merged: {folder / 'merged'}")
            mark_finished(folder, config)
    runtime.finish(leave=last or trained.checkpoint is None)


def reward_verdict(config: RewardStageConfig, folder: Path, checkpoint: Checkpoint) -> str:
    """Write `reward_card.json` from the evaluation of a checkpoint, and say in one line what it says."""
    sources = [source.path for source in config.data.eval or config.data.train]
    card = reward_card(folder / METRICS_FILE, checkpoint.step, sources)
    if card is None:
        return "the reward model is not evaluated: no pairs are held out (data.eval, data.eval_fraction)"
    write_json(folder / CARD, card)
    found = (
        f"accuracy {card['accuracy']:.3f} on {card['pairs']} held-out pairs, "
        f"95 % interval {card['accuracy_low']:.3f} to {card['accuracy_high']:.3f}"
    )
    if beats_chance(card):
        return f"the reward model beats chance: {found}"
    return f"warning: the reward model may be no better than chance: {found}"
