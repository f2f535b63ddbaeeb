"""Instructions and chats to a tuned model: `python recipes/sft.py CONFIG.yaml [key=value ...]`.

The same command runs on one process, and on several under `accelerate launch --config_file
recipes/accelerate/cpu.yaml recipes/sft.py CONFIG.yaml`.
"""

from __future__ import annotations

from functools import partial

from llmtrain.config.recipes import SftConfig
from llmtrain.data.chat.tokenizer import open_chat_tokenizer
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import BestFitPacking
from llmtrain.data.store.chat_store import build_chat_stores
from llmtrain.data.tokenize import tokenizer_fingerprint
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.adapters.lora import OPTIMIZER_BYTES, adapter_report, add_adapter, base_fingerprint
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.models.load import flops_per_token, hub_commit, load_pretrained, parameters_by_role
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.trainer import open_training, train, with_loss_here
from llmtrain.runs.export import export_tuned
from llmtrain.runs.folder import record_ledger
from llmtrain.system.device import fuses_layers


def main(config: SftConfig) -> None:
    """Build the parts, run the loop, export the adapter or the model."""
    folder, runtime = open_training(config)
    path, has_adapter = resolved_path(config.model.path), config.adapter.kind != "none"
    chat = open_chat_tokenizer(config.model, config.tokenizer, config.data, path)
    stores = build_chat_stores(config.data, chat.encoder, report=runtime.say)

    model = load_pretrained(
        config.model, chat.tokenizer, max_seq_len=config.data.max_seq_len, new_token_ids=chat.new_token_ids
    )
    if has_adapter:
        add_adapter(model, config.adapter, chat.new_token_ids, config.run.seed)
        if fuses_layers(runtime.device) and not runtime.shards_parameters:
            fuse_adapters(model)
    runtime.say(adapter_report(model, OPTIMIZER_BYTES[config.optim.name]))
    module = with_loss_here(config, model, runtime)
    module.neftune_alpha = config.model.neftune_alpha
    fingerprint = base_fingerprint(model) if has_adapter else None

    packed = partial(BestFitPacking, max_seq_len=config.data.max_seq_len)
    plan = plan_data(
        config.data,
        config.train,
        config.eval,
        [packed(store) for store in stores.train],
        [packed(store) for store in stores.eval],
        eval_bytes=None,
        seed=config.run.seed,
        world_size=runtime.world_size,
    )
    source = plan.batches(runtime.rank, runtime.world_size)
    held_out = HeldOut(plan, runtime.rank, runtime.world_size, runtime.device, runtime.sum_floats)
    trained = train(
        config,
        folder,
        runtime,
        module,
        parameters_by_role(model),
        objective=NextToken(LossOptions(config.train.label_smoothing, config.train.z_loss)),
        source=source,
        state_without_step=source.state_without_step,
        num_steps=plan.num_steps,
        evaluate=held_out if plan.num_eval_packs else None,
        flops_per_token=flops_per_token(model, plan.mean_segment_tokens, plan.trained_share),
        facts={
            "model_revision": hub_commit(model.config),
            "base_fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(chat.tokenizer),
            "stores": stores.names,
        },
    )
    if runtime.is_main:
        account = plan.account(trained.progress.step, trained.progress.tokens, source.num_skipped)
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
    runtime.finish()


if __name__ == "__main__":
    run_recipe(SftConfig, main)
