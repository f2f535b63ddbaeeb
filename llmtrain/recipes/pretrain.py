"""Pretraining: raw text -> a language model.

llmtrain pretrain demo data.train=texts/ tokenizer.path=runs/tokenizer run.dir=runs/first
accelerate launch -m llmtrain pretrain my.yaml train.global_batch_tokens=524288
"""

from __future__ import annotations

from functools import partial

import torch
from transformers import PreTrainedTokenizerFast

from llmtrain.config.recipes import PretrainConfig
from llmtrain.config.sections import ModelConfig
from llmtrain.data.ledger import lost_summary
from llmtrain.data.loader.batches import collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.text import build_text_stores
from llmtrain.data.tokenize import load_tokenizer
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.adapters.base import base_facts, forward_configuration
from llmtrain.models.flops import training_flops
from llmtrain.models.folders.bases import origin_of
from llmtrain.models.folders.generation import given_generation
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.folders.saved_dtype import saved_dtype
from llmtrain.models.load import load_model, require_fit, resolve_model
from llmtrain.models.wrappers.prepare import prepare_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import Evaluate, LossOptions, Report
from llmtrain.recipes.command import resumable_command, run_recipe
from llmtrain.recipes.model import CHECKING, new_tokens, pinned_facts
from llmtrain.recipes.tasks import with_tasks
from llmtrain.recipes.trainer import Run, Training, close, in_run, train
from llmtrain.system.precision import export_dtype
from llmtrain.system.stop_signal import StopSignal


def run_pretrain(config: PretrainConfig, stop: StopSignal) -> None:
    """Train a new model, or continue one, on documents packed end to end."""
    in_run(config, stop, _train)


def _train(run: Run[PretrainConfig]) -> None:
    config, runtime, data = run.config, run.runtime, run.config.data

    given, tokenizer, new_ids = open_tokenizer(config, report=runtime.say)
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
    config.optim.warmup(plan.num_steps)  # refuses too many before a model is loaded

    if given.path is not None:
        runtime.say(f"loading {given.path}")
    model = load_model(
        given,
        tokenizer,
        max_seq_len=data.max_seq_len,
        seed=config.run.seed,
        new_token_ids=new_ids,
        report=runtime.say,
    )
    base = (
        base_facts(model) if config.model.path is not None else {"configuration": forward_configuration(model.config)}
    )
    runtime.say(CHECKING)
    module = prepare_causal_lm(config, model, runtime, sharding=runtime.sharding)

    source = plan.batches(collate, runtime)
    evaluate: Evaluate | None = HeldOut(plan, runtime) if plan.num_eval_packs else None
    if evaluate is not None:
        evaluate = with_tasks(run, evaluate, model, tokenizer, _ends(tokenizer), module)

    for line in plan.report():
        runtime.say(line)

    training = Training(
        module=module,
        objective=NextToken(LossOptions(config.train.label_smoothing, config.train.z_loss)),
        source=source,
        num_steps=plan.num_steps,
        evaluate=evaluate,
        flops=training_flops(model),
        ledger=stores.ledger.to_dict(),
        account=lambda progress: plan.account(progress.step, progress.tokens, source),
        facts=pinned_facts(run, model, tokenizer, stores, base=base),
        spec=ExportSpec(
            model.config,
            tokenizer,
            dtype=_export_dtype(config, given),
            trust_remote_code=config.model.trust_remote_code,
            generation=given_generation(model),
            origin=None if config.model.path is None else origin_of(config.model.path, config.model.revision),
        ),
        stored=source,
    )
    trained = train(run, training)
    close(run, training, trained)


def _ends(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The token that ends a document, if there is one."""
    return (tokenizer.eos_token_id,) if isinstance(tokenizer.eos_token_id, int) else ()


def _export_dtype(config: PretrainConfig, given: ModelConfig) -> torch.dtype:
    """That of the model that is continued; of a new one, what it was trained in."""
    if given.path is None:
        return export_dtype(config.train.precision)
    return saved_dtype(given.path, given.revision, given.trust_remote_code)


def open_tokenizer(
    config: PretrainConfig, *, report: Report
) -> tuple[ModelConfig, PreTrainedTokenizerFast, tuple[int, ...]]:
    """The model, by its configuration alone, its tokenizer, and the ids of tokens that it has no trained rows for.

    Raises ValueError for a tokenizer that does not fit the model.
    """
    given = resolve_model(config.model)
    tokenizer = load_tokenizer(
        config.tokenizer.path or given.path or "",
        config.tokenizer.revision or config.model.revision,
        config.model.trust_remote_code,
        key="model.path" if config.tokenizer.path is None else "tokenizer.path",
    )
    new_ids = new_tokens(config, given, tokenizer, report=report)
    require_fit(given, tokenizer, max_seq_len=config.data.max_seq_len, new_token_ids=new_ids)
    return given, tokenizer, new_ids


if __name__ == "__main__":
    with resumable_command() as stop:
        run_recipe(PretrainConfig, partial(run_pretrain, stop=stop))
