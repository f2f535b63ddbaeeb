"""Pretraining: raw text -> a language model.

llmtrain pretrain demo data.train=texts/ tokenizer.path=runs/tokenizer run.dir=runs/first
accelerate launch -m llmtrain pretrain my.yaml train.global_batch_tokens=524288
"""

from __future__ import annotations

from functools import partial

from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.ledger import lost_summary
from llmtrain.data.loader.batches import collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.text import build_text_stores
from llmtrain.data.tokenize import load_tokenizer
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.adapters.base import base_facts, forward_configuration
from llmtrain.models.flops import training_flops
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import load_model, resolve_model
from llmtrain.models.wrappers.prepare import prepare_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.model import new_tokens, pinned_facts
from llmtrain.recipes.trainer import Run, Training, close, open_run, train
from llmtrain.system.precision import export_dtype


def run_pretrain(config: PretrainConfig) -> None:
    """Train a new model, or continue one, on documents packed end to end."""
    with open_run(config) as run:
        _train(run)


def _train(run: Run[PretrainConfig]) -> None:
    config, runtime, data = run.config, run.runtime, run.config.data

    tokenizer = load_tokenizer(
        config.tokenizer.path or config.model.path or "",
        config.tokenizer.revision or config.model.revision,
        config.model.trust_remote_code,
        key="model.path" if config.tokenizer.path is None else "tokenizer.path",
    )
    given = resolve_model(config.model)
    model = load_model(
        given,
        tokenizer,
        max_seq_len=data.max_seq_len,
        seed=config.run.seed,
        new_token_ids=new_tokens(run, given, tokenizer),
        report=runtime.say,
    )
    base = (
        base_facts(model) if config.model.path is not None else {"configuration": forward_configuration(model.config)}
    )
    module = prepare_causal_lm(config, model, runtime, shards_parameters=runtime.shards_parameters)

    stores = build_text_stores(data, tokenizer, report=runtime.say)
    packed = partial(StreamPacking, max_seq_len=data.max_seq_len, isolate_documents=data.isolate_documents)
    lost = lost_summary(stores.held_out)
    if lost is not None:
        runtime.say(f"warning: no eval_bits_per_byte: the tokenizer (tokenizer.path) loses held-out text: {lost}")
    plan = plan_data(
        config,
        [packed(store) for store in stores.train],
        [packed(store) for store in stores.eval],
        runtime,
        eval_bytes=None if lost else sum(store.num_bytes for store in stores.eval),
    )
    source = plan.batches(collate, runtime)

    for line in plan.report():
        runtime.say(line)

    training = Training(
        module=module,
        objective=NextToken(LossOptions(config.train.label_smoothing, config.train.z_loss)),
        source=source,
        num_steps=plan.num_steps,
        evaluate=HeldOut(plan, runtime) if plan.num_eval_packs else None,
        flops=training_flops(model),
        ledger=stores.ledger.to_dict(),
        account=lambda progress: plan.account(progress.step, progress.tokens, source),
        facts=pinned_facts(run, model, tokenizer, stores, base=base),
        spec=ExportSpec(
            model.config,
            tokenizer,
            dtype=export_dtype(config.train.precision),
            trust_remote_code=config.model.trust_remote_code,
        ),
        state_without_step=source.state_without_step,
    )
    trained = train(run, training)
    close(run, training, trained)


if __name__ == "__main__":
    run_recipe(PretrainConfig, run_pretrain)
