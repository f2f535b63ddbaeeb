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
from llmtrain.models.adapters.lora import adapter_report, add_adapter, base_fingerprint
from llmtrain.models.flops import flops_per_token
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import hub_commit, load_pretrained, resolve_model
from llmtrain.models.wrappers.prepare import prepare_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.trainer import open_training, train
from llmtrain.runs.export import export_tuned
from llmtrain.runs.folder import record_ledger
from llmtrain.system.precision import export_dtype
from llmtrain.train.optim import OPTIMIZER_BYTES


def main(config: SftConfig) -> None:
    """Build the parts, run the loop, export the adapter or the model."""
    folder, runtime = open_training(config)
    source_model, has_adapter = resolve_model(config.model), config.adapter.kind != "none"
    chat = open_chat_tokenizer(source_model, config.tokenizer, config.data, source_model.path)
    stores = build_chat_stores(config.data, chat.encoder, report=runtime.say)

    model = load_pretrained(
        source_model, chat.tokenizer, max_seq_len=config.data.max_seq_len, new_token_ids=chat.new_token_ids
    )
    if has_adapter:
        add_adapter(model, config.adapter, chat.new_token_ids, config.run.seed)
    runtime.say(adapter_report(model, OPTIMIZER_BYTES[config.optim.name]))
    module = prepare_causal_lm(config, model, runtime, shards_parameters=runtime.shards_parameters)
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
    held_out = HeldOut(plan, runtime)
    trained = train(
        config,
        folder,
        runtime,
        module,
        objective=NextToken(LossOptions(config.train.label_smoothing, config.train.z_loss)),
        source=source,
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
