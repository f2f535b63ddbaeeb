"""Raw text to a pretrained model: `python recipes/pretrain.py CONFIG.yaml [key=value ...]`.

The same command runs on one process, and on several under `accelerate launch --config_file
recipes/accelerate/cpu.yaml recipes/pretrain.py CONFIG.yaml`.
"""

from __future__ import annotations

from functools import partial

from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.loader.batches import collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.text import build_text_stores
from llmtrain.data.tokenize import load_tokenizer, tokenizer_fingerprint
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.flops import flops_per_token
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import hub_commit, load_model
from llmtrain.models.wrappers.prepare import prepare_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.trainer import open_training, train
from llmtrain.runs.folder import export_run, record_ledger
from llmtrain.system.precision import export_dtype


def main(config: PretrainConfig) -> None:
    """Build the parts, run the loop, export the model."""
    folder, runtime = open_training(config)
    model_path, revision = config.model.path, config.model.revision
    tokenizer = load_tokenizer(
        config.tokenizer.path or model_path or "", config.tokenizer.revision or revision, config.model.trust_remote_code
    )
    model = load_model(config.model, tokenizer, max_seq_len=config.data.max_seq_len, seed=config.run.seed)
    module = prepare_causal_lm(config, model, runtime, shards_parameters=runtime.shards_parameters)

    stores = build_text_stores(config.data, tokenizer, report=runtime.say)
    data = config.data
    packed = partial(StreamPacking, max_seq_len=data.max_seq_len, isolate_documents=data.isolate_documents)
    plan = plan_data(
        config,
        [packed(store) for store in stores.train],
        [packed(store) for store in stores.eval],
        runtime,
        eval_bytes=sum(store.num_bytes for store in stores.eval),
    )
    source = plan.batches(collate, runtime)
    held_out = HeldOut(plan, runtime.rank, runtime.world_size, runtime.device, runtime.sum_floats)
    trained = train(
        config,
        folder,
        runtime,
        module,
        objective=NextToken(LossOptions(config.train.label_smoothing, config.train.z_loss)),
        source=source,
        state_without_step=source.state_without_step,
        num_steps=plan.num_steps,
        evaluate=held_out if plan.num_eval_packs else None,
        flops_per_token=flops_per_token(model, plan.mean_segment_tokens),
        facts={
            "model_revision": hub_commit(model.config),
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "stores": stores.names,
        },
    )
    if runtime.is_main:
        account = plan.account(trained.progress.step, trained.progress.tokens, source.num_skipped)
        record_ledger(folder, stores.ledger.to_dict(), account)
        if trained.checkpoint is not None:
            spec = ExportSpec(
                model.config,
                tokenizer,
                dtype=export_dtype(config.train.precision),
                trust_remote_code=config.model.trust_remote_code,
            )
            runtime.say(f"{trained.outcome}: {export_run(folder, config, trained.checkpoint, spec)}")
    runtime.finish()


if __name__ == "__main__":
    run_recipe(PretrainConfig, main)
