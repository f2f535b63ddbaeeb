"""Supervised fine-tuning: instructions and chats -> a tuned model, fully or with an adapter.

    llmtrain sft sft_smollm2_lora data.train=my_rows.jsonl
    accelerate launch -m llmtrain sft my.yaml data.train=my_rows.jsonl

Rows become packs on disk, the loop pulls batches of packs, and the loss is that of the next token in answers:

    rows -> ChatEncoder -> stores -> packs -> NextToken
"""

from __future__ import annotations

from functools import partial

from llmtrain.config.recipes import SftConfig
from llmtrain.data.formats.held_out import chat_questions
from llmtrain.data.loader.batches import collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import pack_documents
from llmtrain.data.store.kinds import build_chat_stores
from llmtrain.eval.before_after.held_out import held_out_conversations
from llmtrain.eval.next_token import HeldOut
from llmtrain.models.flops import training_flops
from llmtrain.models.wrappers.prepare import prepare_causal_lm
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import LossOptions
from llmtrain.recipes.before_after import before_after
from llmtrain.recipes.command import resumable_command, run_recipe
from llmtrain.recipes.model import (
    CHECKING,
    export_spec,
    given_model,
    load_with_adapter,
    open_chat,
    pinned_facts,
    start_facts,
    trained_report,
)
from llmtrain.recipes.samples import answers_to, with_samples
from llmtrain.recipes.tasks import with_tasks
from llmtrain.recipes.trainer import Run, Training, close, in_run, train
from llmtrain.system.stop_signal import StopSignal


def run_sft(config: SftConfig, stop: StopSignal) -> None:
    """Train a model on the answers of conversations."""
    in_run(config, stop, _train)


def _train(run: Run[SftConfig]) -> None:
    config, runtime, data = run.config, run.runtime, run.config.data

    base = given_model(config)
    chat = open_chat(config, base, data.loss_on, report=runtime.say)
    stores = build_chat_stores(data, chat.encoder, report=runtime.say)

    plan = plan_data(
        config,
        [
            pack_documents(store, data.max_seq_len, runtime.say, as_given=data.order == "given")
            for store in stores.train
        ],
        [pack_documents(store, data.max_seq_len, runtime.say) for store in stores.eval],
        runtime,
    )
    config.optim.warmup(plan.num_steps)  # refuses too many before a model is loaded

    loaded = load_with_adapter(run, base, chat)
    model = loaded.model
    runtime.say(trained_report(run, model))
    facts = start_facts(loaded, model)
    runtime.say(CHECKING)
    module = prepare_causal_lm(config, model, runtime, sharding=runtime.sharding)
    module.neftune_alpha = config.model.neftune_alpha

    source = plan.batches(collate, runtime)
    evaluate = with_samples(run, HeldOut(plan, runtime), chat_questions, model, chat) if plan.num_eval_packs else None
    evaluate = with_tasks(run, evaluate, model, chat.tokenizer, chat.encoder.end_of_turn_ids, module)

    own = held_out_conversations(plan, runtime) if plan.num_eval_packs else {}
    own |= answers_to(run, model, chat, chat_questions)

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
        facts=pinned_facts(run, model, chat.tokenizer, stores, base=facts),
        spec=export_spec(run, base, loaded, chat),
        before_after=before_after(run, model, chat, module, own),
        stored=source,
    )
    trained = train(run, training)
    close(run, training, trained)


if __name__ == "__main__":
    with resumable_command() as stop:
        run_recipe(SftConfig, partial(run_sft, stop=stop))
