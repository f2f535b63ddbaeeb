"""Supervised fine-tuning: instructions and chats -> a tuned model, fully or with an adapter.

    llmtrain sft sft_smollm2_lora data.train=my_rows.jsonl
    accelerate launch -m llmtrain sft my.yaml data.train=my_rows.jsonl

Rows become packs on disk, the loop pulls batches of packs, and the loss is that of the next token in answers:

    rows -> ChatEncoder -> stores -> packs -> NextToken
"""

from __future__ import annotations

from llmtrain.config.recipes import SftConfig
from llmtrain.data.chat.tokenizer import open_chat_tokenizer
from llmtrain.data.loader.batches import collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import pack_documents
from llmtrain.data.store.kinds import build_chat_stores
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.flops import training_flops
from llmtrain.models.wrappers.prepare import prepare_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.model import export_spec, given_model, load_with_adapter, pinned_facts, trained_report
from llmtrain.recipes.trainer import Run, Training, close, open_run, train


def run_sft(config: SftConfig) -> None:
    """Train a model on the answers of conversations."""
    with open_run(config) as run:
        _train(run)


def _train(run: Run[SftConfig]) -> None:
    config, runtime, data = run.config, run.runtime, run.config.data

    base = given_model(config)
    chat = open_chat_tokenizer(base, config.tokenizer, chat_template=data.chat_template, loss_on=data.loss_on)
    stores = build_chat_stores(data, chat.encoder, report=runtime.say)

    model = load_with_adapter(run, base, chat)
    runtime.say(trained_report(run, model))
    facts = base_facts(model)
    module = prepare_causal_lm(config, model, runtime, shards_parameters=runtime.shards_parameters)
    module.neftune_alpha = config.model.neftune_alpha

    plan = plan_data(
        config,
        [pack_documents(store, data.max_seq_len, runtime.say) for store in stores.train],
        [pack_documents(store, data.max_seq_len, runtime.say) for store in stores.eval],
        runtime,
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
        facts=pinned_facts(run, model, chat.tokenizer, stores, base=facts),
        spec=export_spec(run, model, chat),
        state_without_step=source.state_without_step,
    )
    trained = train(run, training)
    close(run, training, trained)


if __name__ == "__main__":
    run_recipe(SftConfig, run_sft)
