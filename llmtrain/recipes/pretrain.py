"""Raw text to a pretrained model: `python recipes/pretrain.py CONFIG.yaml [key=value ...]`.

The same command runs on one process, and on several under `accelerate launch --config_file
recipes/accelerate/cpu.yaml recipes/pretrain.py CONFIG.yaml`.
"""

from __future__ import annotations

from functools import partial

from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.text_stores import build_stores
from llmtrain.data.tokenize import load_tokenizer, tokenizer_fingerprint
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.folders.model import export_model
from llmtrain.models.load import flops_per_token, hub_commit, load_model, parameters_by_role
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.trainer import open_training, train, with_loss_here
from llmtrain.runs.folder import export_dtype, export_run, record_ledger


def main(config: PretrainConfig) -> None:
    """Build the parts, run the loop, export the model."""
    folder, runtime = open_training(config)
    model_path, revision = config.model.path, config.model.revision
    tokenizer = load_tokenizer(
        config.tokenizer.path or model_path or "", config.tokenizer.revision or revision, config.model.trust_remote_code
    )
    model = load_model(config.model, tokenizer, max_seq_len=config.data.max_seq_len, seed=config.run.seed)
    module = with_loss_here(config, model, runtime)

    stores = build_stores(config.data, tokenizer, report=runtime.say)
    data = config.data
    packed = partial(StreamPacking, max_seq_len=data.max_seq_len, isolate_documents=data.isolate_documents)
    plan = plan_data(
        config.data,
        config.train,
        config.eval,
        [packed(store) for store in stores.train],
        [packed(store) for store in stores.eval],
        eval_bytes=sum(store.num_bytes for store in stores.eval),
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
        parameters_by_role(model),
        objective=NextToken(LossOptions(config.train.label_smoothing, config.train.z_loss)),
        source=source,
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
            write = partial(
                export_model,
                shape=model.config,
                tokenizer=tokenizer,
                dtype=export_dtype(config.train),
                trust_remote_code=config.model.trust_remote_code,
            )
            runtime.say(f"{trained.outcome}: {export_run(folder, config, trained.checkpoint, write)}")
    runtime.finish()


if __name__ == "__main__":
    run_recipe(PretrainConfig, main)
