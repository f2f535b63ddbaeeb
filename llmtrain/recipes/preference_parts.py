"""What losses over pairs, and KTO over single answers, have each in their own way: packs, objective, evaluation.

`preference_stage` runs either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from llmtrain.batch import LabelledAnswers
from llmtrain.config.recipes import PreferenceStageConfig
from llmtrain.config.rl import PREFERENCE_LOSSES
from llmtrain.data.loader.batches import StoredBatches
from llmtrain.data.loader.plan import DataPlan, plan_data
from llmtrain.data.packing.answers import AnswerPacking, collate_answers
from llmtrain.data.packing.documents import Packing
from llmtrain.data.packing.pairs import PairPacking, collate_pairs
from llmtrain.data.store.text_stores import Stores
from llmtrain.data.store.token_store import TokenStore
from llmtrain.eval.implied_rewards import HeldOutPreferences
from llmtrain.eval.kto import HeldOutAnswers
from llmtrain.eval.reference_logprobs import Reference
from llmtrain.objectives.kto import KlBatches, KtoObjective
from llmtrain.objectives.preference import PairwisePreference
from llmtrain.objectives.preference_losses import PreferenceOptions
from llmtrain.protocols import BatchSource, Evaluate, Objective
from llmtrain.train.runtime import Runtime


@dataclass(frozen=True)
class Parts:
    """A run's own parts."""

    plan: DataPlan
    stored: StoredBatches[Any]
    source: BatchSource[Any]  # `stored`, or what is made of it
    objective: Objective[Any]
    evaluate: Evaluate


def pair_parts(
    config: PreferenceStageConfig, stores: Stores, shared: bool, reference: Reference, runtime: Runtime
) -> Parts:
    """The parts of a loss that compares the answers of a pair; `shared`: a pack holds their prompt once."""

    def packed(store: TokenStore) -> PairPacking:
        packs = PairPacking(store, config.data.max_seq_len, share_prompts=shared, answers_only=True)
        if not PREFERENCE_LOSSES[config.preference.loss].needs_reference:
            return packs
        return replace(packs, ref_logprobs=reference.logprobs(packs, collate_pairs, reads="answers"))

    train_packs, eval_packs = ([packed(store) for store in split] for split in (stores.train, stores.eval))
    plan = _planned(config, train_packs, eval_packs, runtime)
    objective = PairwisePreference(config.preference.loss, PreferenceOptions(**config.preference.options()))
    stored = plan.batches_by(collate_pairs, runtime.rank, runtime.world_size)
    evaluate = HeldOutPreferences(plan, runtime, objective)
    return Parts(plan, stored, stored, objective, evaluate)


def answer_parts(
    config: PreferenceStageConfig, stores: Stores, module: nn.Module, reference: Reference, runtime: Runtime
) -> Parts:
    """The parts of KTO, which judges each answer by itself and needs the KL of each step."""

    def packed(store: TokenStore, *, mismatched: bool = False) -> AnswerPacking:
        packs = AnswerPacking(store, config.data.max_seq_len, mismatched)
        reads = "mismatched answers" if mismatched else "single answers"
        return replace(packs, ref_logprobs=reference.logprobs(packs, collate_answers, reads=reads))

    train_packs, eval_packs = ([packed(store) for store in split] for split in (stores.train, stores.eval))
    train_others, eval_others = (
        [packed(store, mismatched=True) for store in split] for split in (stores.train, stores.eval)
    )
    plan = _planned(config, train_packs, eval_packs, runtime)

    def in_training(batch: LabelledAnswers) -> LabelledAnswers:
        places = [(sample_id, *plan.order(sample_id)) for sample_id in batch.sample_ids]
        return collate_answers([(sample_id, train_others[source].pack(index)) for sample_id, source, index in places])

    def held_out(batch: LabelledAnswers) -> LabelledAnswers:
        places = [(sample_id, *plan.eval_place(sample_id)) for sample_id in batch.sample_ids]
        return collate_answers([(sample_id, eval_others[source].pack(index)) for sample_id, source, index in places])

    objective = KtoObjective(**config.preference.options())
    runtime.say(_balance(objective, train_packs))
    stored = plan.batches_by(collate_answers, runtime.rank, runtime.world_size)
    evaluate = HeldOutAnswers(plan, runtime, objective, held_out)
    return Parts(plan, stored, KlBatches(stored, in_training, module, runtime), objective, evaluate)


def _planned(
    config: PreferenceStageConfig, train: Sequence[Packing], held_out: Sequence[Packing], runtime: Runtime
) -> DataPlan:
    return plan_data(
        config.data,
        config.train,
        config.eval,
        train,
        held_out,
        eval_bytes=None,
        seed=config.run.seed,
        world_size=runtime.world_size,
    )


def _balance(objective: KtoObjective, packs: Sequence[AnswerPacking]) -> str:
    """How many answers of each kind there are, and a warning where their weights leave them far apart."""
    desirable = np.concatenate([each.desirable for each in packs])
    good, bad = int(desirable.sum()), int((~desirable).sum())
    told = f"{good:,} desirable and {bad:,} undesirable answers"
    ratio = good * objective.desirable_weight / max(bad * objective.undesirable_weight, 1e-9)
    if 1 <= ratio <= 4 / 3:  # Ethayarajh 2024, equation 8
        return told
    return (
        f"{told}: warning: weighted, {ratio:.3g} to 1, where KTO's paper wants 1 to 4/3: set "
        "preference.desirable_weight or preference.undesirable_weight"
    )
