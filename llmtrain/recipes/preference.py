"""Preferences without rollouts: pairs or labelled answers -> a policy, by DPO and its variants, or KTO.

    llmtrain rlhf dpo_smollm2 data.train=pairs.jsonl
    accelerate launch -m llmtrain rlhf my.yaml data.train=pairs.jsonl preference.loss=kto

The reference is the initial policy. Its log-probs are computed once, before training, and stored with the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from llmtrain.batch import LabelledAnswers
from llmtrain.config.recipes import PreferenceStageConfig
from llmtrain.config.rl import PREFERENCE_LOSSES
from llmtrain.data.formats.held_out import preference_questions
from llmtrain.data.loader.batches import StoredBatches
from llmtrain.data.loader.plan import DataPlan, plan_data
from llmtrain.data.packing.answers import collate_answers, desirable_answers, pack_answers
from llmtrain.data.packing.documents import BestFitPacking
from llmtrain.data.packing.mismatch import MISMATCH
from llmtrain.data.packing.pairs import collate_pairs, pack_pairs
from llmtrain.data.store.build import Stores
from llmtrain.data.store.kinds import build_answer_stores, build_pair_stores
from llmtrain.data.store.token_store import TokenStore
from llmtrain.eval.before_after.held_out import held_out_labelled, held_out_pairs
from llmtrain.eval.implied_rewards import HeldOutPreferences
from llmtrain.eval.kto import HeldOutAnswers
from llmtrain.eval.reference_logprobs import Reference
from llmtrain.models.flops import training_flops
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.checks import shares_prompts
from llmtrain.models.wrappers.prepare import prepare_causal_lm
from llmtrain.objectives.kto import KlBatches, KtoObjective
from llmtrain.objectives.preference import PairwisePreference
from llmtrain.objectives.preference_losses import PreferenceOptions
from llmtrain.protocols import BatchSource, Evaluate, Objective
from llmtrain.recipes.before_after import before_after
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


def run_preference(config: PreferenceStageConfig, stop: StopSignal, *, last: bool = True) -> None:
    """Train a policy on preferences; the loss says whether on pairs or on single answers."""
    in_run(config, stop, _train, last=last)


def _train(run: Run[PreferenceStageConfig]) -> None:
    config, runtime, data, takes_pairs = run.config, run.runtime, run.config.data, run.config.preference.loss != "kto"

    base = given_model(config)
    chat = open_chat(config, base, report=runtime.say)
    build_stores = build_pair_stores if takes_pairs else build_answer_stores
    stores = build_stores(data, chat.encoder, report=runtime.say)

    loaded = load_with_adapter(run, base, chat)
    model = loaded.model
    runtime.say(trained_report(run, model))
    facts = start_facts(loaded, model)
    runtime.say(CHECKING)
    checked = prepare_causal_lm(config, model, runtime, sharding=runtime.sharding)
    shared = takes_pairs and shares_prompts(model, checked.kernel, data.max_seq_len, runtime.device, runtime.say)
    module = ActorCritic(checked, temperature=1.0, trains_entropy=False)

    reference = Reference(
        module,
        base=facts,
        packs_per_microbatch=config.train.microbatch_tokens // data.max_seq_len,
        ranks=runtime,
        report=runtime.say,
    )
    if takes_pairs:
        learned = from_pairs(run, stores, reference, shared=shared)
    else:
        learned = from_answers(run, stores, reference)
    plan, batches = learned.plan, learned.batches
    evaluate = with_samples(run, learned.evaluate, preference_questions, model, chat) if plan.num_eval_packs else None
    evaluate = with_tasks(run, evaluate, model, chat.tokenizer, chat.encoder.end_of_turn_ids, module)

    held_out = held_out_pairs if takes_pairs else held_out_labelled
    own = held_out(plan, runtime) if plan.num_eval_packs else {}
    own |= answers_to(run, model, chat, preference_questions)

    for line in plan.report():
        runtime.say(line)

    training = Training(
        module=module,
        objective=learned.objective,
        source=learned.source,
        num_steps=plan.num_steps,
        evaluate=evaluate,
        flops=training_flops(model),
        ledger=stores.ledger.to_dict(),
        account=lambda progress: plan.account(progress.step, progress.tokens, batches),
        facts=pinned_facts(run, model, chat.tokenizer, stores, base=facts, shared_prompts=shared),
        spec=export_spec(run, base, loaded, chat),
        before_after=before_after(run, model, chat, module, own),
        stored=batches,
    )
    trained = train(run, training)
    close(run, training, trained)


class Learned(NamedTuple):
    """What pairs and single answers have each in their own way."""

    plan: DataPlan
    batches: StoredBatches[Any]
    source: BatchSource[Any]  # `batches`, or what adds the KL of a step to them
    objective: Objective[Any]
    evaluate: Evaluate


def from_pairs(run: Run[PreferenceStageConfig], stores: Stores, reference: Reference, *, shared: bool) -> Learned:
    """For losses that compare the two answers of a pair; `shared`: a pack holds their prompt once."""
    preference = run.config.preference
    objective = PairwisePreference(preference.loss, PreferenceOptions(**preference.options()))

    data, say = run.config.data, run.runtime.say

    def packed(store: TokenStore, *, as_given: bool = False) -> BestFitPacking:
        packs = pack_pairs(store, data.max_seq_len, say, share_prompts=shared, answers_only=True, as_given=as_given)
        if not PREFERENCE_LOSSES[preference.loss].needs_reference:
            return packs
        return replace(packs, ref_logprobs=reference.logprobs(packs, collate_pairs, reads="answers"))

    train_packs = [packed(store, as_given=data.order == "given") for store in stores.train]
    eval_packs = [packed(store) for store in stores.eval]
    plan = plan_data(run.config, train_packs, eval_packs, run.runtime)
    batches = plan.batches(collate_pairs, run.runtime)
    return Learned(plan, batches, batches, objective, HeldOutPreferences(plan, run.runtime, objective))


def from_answers(run: Run[PreferenceStageConfig], stores: Stores, reference: Reference) -> Learned:
    """For KTO: single answers, and the same prompts with answers to other prompts, which give the KL of a step."""
    objective = KtoObjective(**run.config.preference.options())

    data, say = run.config.data, run.runtime.say

    def packed(store: TokenStore, *, mismatched: bool = False, as_given: bool = False) -> BestFitPacking:
        packs = pack_answers(store, data.max_seq_len, say, mismatched=mismatched, as_given=as_given)
        reads = MISMATCH if mismatched else "single answers"
        return replace(packs, ref_logprobs=reference.logprobs(packs, collate_answers, reads=reads))

    train_packs, train_others = (
        [packed(store, mismatched=mismatched, as_given=data.order == "given") for store in stores.train]
        for mismatched in (False, True)
    )
    eval_packs, eval_others = (
        [packed(store, mismatched=mismatched) for store in stores.eval] for mismatched in (False, True)
    )
    plan = plan_data(run.config, train_packs, eval_packs, run.runtime)
    train_others = [others.repeated(packs.num_passes) for others, packs in zip(train_others, plan.train, strict=True)]

    def mismatch_train(batch: LabelledAnswers) -> LabelledAnswers:
        places = [(sample_id, *plan.order(sample_id)) for sample_id in batch.sample_ids]
        return collate_answers([(sample_id, train_others[source].pack(index)) for sample_id, source, index in places])

    def mismatch_eval(batch: LabelledAnswers) -> LabelledAnswers:
        places = [(sample_id, *plan.eval_place(sample_id)) for sample_id in batch.sample_ids]
        return collate_answers([(sample_id, eval_others[source].pack(index)) for sample_id, source, index in places])

    run.runtime.say(balance_report(objective, stores.train))
    batches = plan.batches(collate_answers, run.runtime)
    source = KlBatches(batches, mismatch_train, reference.module, run.runtime)
    return Learned(plan, batches, source, objective, HeldOutAnswers(plan, run.runtime, objective, mismatch_eval))


def balance_report(objective: KtoObjective, stores: Sequence[TokenStore]) -> str:
    """How many answers of each label there are, with a warning if their weights are far from balanced."""
    desirable = np.concatenate([desirable_answers(store) for store in stores])
    good, bad = int(desirable.sum()), int((~desirable).sum())
    counts = f"{good:,} desirable and {bad:,} undesirable answers"
    if not good or not bad:
        missing = "undesirable" if good else "desirable"
        return f"{counts}: warning: KTO compares the two, and there is no {missing} one to learn from"
    ratio = good * objective.desirable_weight / (bad * objective.undesirable_weight)
    if 1 <= ratio <= 4 / 3:  # Ethayarajh 2024, equation 8
        return counts
    return (
        f"{counts}: warning: weighted, {ratio:.3g} to 1, where KTO's paper wants 1 to 4/3: set "
        "preference.desirable_weight or preference.undesirable_weight"
    )
