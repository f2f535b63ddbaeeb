"""A reward model: preference pairs -> a model that scores answers, with a card that says how well.

llmtrain rlhf reward_smollm2_hh data.train=pairs.jsonl
accelerate launch -m llmtrain rlhf my.yaml data.train=pairs.jsonl
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from llmtrain.config.recipes import RewardStageConfig
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.pairs import collate_pairs, has_margins, pack_pairs
from llmtrain.data.store.kinds import build_pair_stores
from llmtrain.eval.pairs import HeldOutPairs, reward_card
from llmtrain.models.flops import training_flops
from llmtrain.models.folders.files import REWARD_CARD
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.reward import card_verdict
from llmtrain.models.wrappers.checks import shares_prompts
from llmtrain.models.wrappers.prepare import prepare_reward_model
from llmtrain.models.wrappers.reward_model import loading_note, pooling_pad_id, score_model
from llmtrain.objectives.reward import PairwiseReward
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
from llmtrain.recipes.trainer import Run, Training, close, in_run, train
from llmtrain.system.files import FREE_RUN, write_json
from llmtrain.system.stop_signal import StopSignal


def run_reward(config: RewardStageConfig, stop: StopSignal, *, last: bool = True) -> None:
    """Train a scalar head and its trunk on pairs, so that the chosen answer scores above the rejected one."""
    in_run(config, stop, _train, last=last)


def _train(run: Run[RewardStageConfig]) -> None:
    config, runtime, data = run.config, run.runtime, run.config.data

    base = given_model(config)
    chat = open_chat(config, base, report=runtime.say)
    pad_token_id = pooling_pad_id(chat.tokenizer, chat.encoder.end_of_turn_ids)
    stores = build_pair_stores(data, chat.encoder, report=runtime.say)
    for source, store in zip(data.train, stores.train, strict=True):
        if config.reward.margin and not has_margins(store):
            raise ValueError(f"reward.margin: {source.path} has rows without a margin: add it, or leave the key out")

    loaded = load_with_adapter(run, base, chat, REWARD)
    model = score_model(loaded.model, base, pad_token_id=pad_token_id, seed=config.run.seed)
    if note := loading_note(model.config):
        runtime.say(note)
    runtime.say(trained_report(run, model))
    facts = start_facts(loaded, model)
    runtime.say(CHECKING)
    module = prepare_reward_model(config, model, runtime, sharding=runtime.sharding)

    shared = shares_prompts(model, module.kernel, data.max_seq_len, runtime.device, runtime.say)
    packed = partial(pack_pairs, max_seq_len=data.max_seq_len, report=runtime.say, share_prompts=shared)
    train_packs = [packed(store, as_given=data.order == "given") for store in stores.train]
    eval_packs = [packed(store) for store in stores.eval]
    plan = plan_data(config, train_packs, eval_packs, runtime)
    batches = plan.batches(collate_pairs, runtime)

    for line in plan.report():
        runtime.say(line)

    training = Training(
        module=module,
        objective=PairwiseReward(config.reward.margin, config.reward.centering),
        source=batches,
        num_steps=plan.num_steps,
        evaluate=HeldOutPairs(plan, runtime) if plan.num_eval_packs else None,
        flops=training_flops(model),
        ledger=stores.ledger.to_dict(),
        account=lambda progress: plan.account(progress.step, progress.tokens, batches),
        facts=pinned_facts(run, model, chat.tokenizer, stores, base=facts, shared_prompts=shared),
        spec=export_spec(run, base, loaded, chat, REWARD, model.config),
        stored=batches,
    )
    trained = train(run, training)
    if trained.checkpoint is not None and run.may_write():
        runtime.say(write_reward_card(run.folder / REWARD_CARD, run.folder, config, trained.checkpoint.step))
    close(run, training, trained)


def write_reward_card(path: Path, folder: Path, config: RewardStageConfig, step: int) -> str:
    """Write the card of a run's reward model from the evaluation of a step; returns its verdict, one line."""
    card = reward_card(folder, step, [source.path for source in config.data.eval or config.data.train])
    if card is None:
        return (
            "the reward model is not evaluated at this step, or no pairs are held out (data.eval, data.eval_fraction)"
        )
    write_json(path, card, FREE_RUN)
    return card_verdict(card)
