"""Instructions and chats to a tuned model: `python recipes/sft.py CONFIG.yaml [key=value ...]`.

The same command runs on one process, and on several under `accelerate launch --config_file
recipes/accelerate/cpu.yaml recipes/sft.py CONFIG.yaml`.
"""

from __future__ import annotations

from llmtrain.config.recipes import SftConfig
from llmtrain.data.chat.tokenizer import open_chat_tokenizer
from llmtrain.data.loader.batches import collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import pack_documents
from llmtrain.data.store.kinds import build_chat_stores
from llmtrain.data.tokenize import tokenizer_fingerprint
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.adapters.lora import adapter_report, add_adapter, base_fingerprint
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import flops_per_token, hub_commit, load_pretrained, parameters_by_role
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.trainer import open_training, train, with_loss_here
from llmtrain.runs.export import export_tuned
from llmtrain.runs.folder import record_ledger
from llmtrain.system.device import fuses_layers
from llmtrain.system.precision import export_dtype
from llmtrain.train.optim import OPTIMIZER_BYTES


def main(config: SftConfig) -> None:
    """Build the parts, run the loop, export the adapter or the model."""
    folder, runtime = open_training(config)
    path, has_adapter = resolved_path(config.model.path), config.adapter.kind != "none"
    chat = open_chat_tokenizer(
        config.model,
        config.tokenizer,
        path,
        chat_template=config.data.chat_template,
        loss_on=config.data.loss_on,
    )
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

    train_packs = [pack_documents(store, config.data.max_seq_len) for store in stores.train]
    eval_packs = [pack_documents(store, config.data.max_seq_len) for store in stores.eval]
    plan = plan_data(config, train_packs, eval_packs, runtime)
    source = plan.batches(collate, runtime)
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
            spec = ExportSpec(
                model.config,
                chat.tokenizer,
                dtype=export_dtype(config.train.precision),
                stop_ids=chat.encoder.end_of_turn_ids,
                trust_remote_code=config.model.trust_remote_code,
            )
            exported = export_tuned(folder, config, trained.checkpoint, spec, fingerprint)
            runtime.say(f"{trained.outcome}: {exported}")
    runtime.finish()


if __name__ == "__main__":
    run_recipe(SftConfig, main)
