"""What losses over pairs, and KTO over single answers, have each in their own way: packs, objective, evaluation.

`preference_stage` runs either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from llmtrain.batch import JudgedAnswers
from llmtrain.config.recipes import PreferenceStageConfig
from llmtrain.data.loader.batches import StoredBatches
from llmtrain.data.loader.plan import DataPlan, plan_data
from llmtrain.data.packing.answers import collate_answers, desirable_answers, pack_answers
from llmtrain.data.packing.documents import BestFitPacking
from llmtrain.data.packing.pairs import collate_pairs, pack_pairs
from llmtrain.data.store.build import Stores
from llmtrain.data.store.token_store import TokenStore
from llmtrain.eval.implied_rewards import HeldOutPreferences
from llmtrain.eval.kto import HeldOutAnswers
from llmtrain.objectives.kto import KlBatches
from llmtrain.objectives.preference import JudgedPreference, PairwisePreference, preference_options
from llmtrain.objectives.preference_losses import REFERENCE_FREE
from llmtrain.protocols import Array, BatchSource, Evaluate, Objective
from llmtrain.train.runtime import Runtime

Ask = Callable[..., Array]
"""(packs, collate, reads=) -> the reference's logprobs of their answers: `reference_logprobs`, the model bound."""


@dataclass(frozen=True)
class Parts:
    """A run's own parts."""

    plan: DataPlan
    stored: StoredBatches[Any]
    source: BatchSource[Any]  # `stored`, or what is made of it
    objective: Objective[Any]
    evaluate: Evaluate


def pair_parts(config: PreferenceStageConfig, stores: Stores, shared: bool, ask: Ask, runtime: Runtime) -> Parts:
    """The parts of a loss that compares the answers of a pair; `shared`: a pack holds their prompt once."""

    def packed(store: TokenStore) -> BestFitPacking:
        packs = pack_pairs(store, config.data.max_seq_len, share_prompts=shared, answers_only=True)
        if config.preference.loss in REFERENCE_FREE:
            return packs
        return replace(packs, ref_logprobs=ask(packs, collate_pairs, reads="answers"))

    train_packs, eval_packs = ([packed(store) for store in split] for split in (stores.train, stores.eval))
    plan = plan_data(config, train_packs, eval_packs, runtime)
    rank, world_size = runtime.rank, runtime.world_size
    objective = PairwisePreference(config.preference.loss, preference_options(config.preference))
    stored = plan.batches(collate_pairs, runtime)
    evaluate = HeldOutPreferences(plan, rank, world_size, runtime.device, runtime.gather_floats, objective)
    return Parts(plan, stored, stored, objective, evaluate)


def answer_parts(config: PreferenceStageConfig, stores: Stores, module: nn.Module, ask: Ask, runtime: Runtime) -> Parts:
    """The parts of KTO, which judges each answer by itself and needs the KL of each step."""

    def packed(store: TokenStore, *, mismatched: bool = False) -> BestFitPacking:
        packs = pack_answers(store, config.data.max_seq_len, mismatched=mismatched)
        reads = "mismatched answers" if mismatched else "single answers"
        return replace(packs, ref_logprobs=ask(packs, collate_answers, reads=reads))

    train_packs, eval_packs = ([packed(store) for store in split] for split in (stores.train, stores.eval))
    train_others, eval_others = (
        [packed(store, mismatched=True) for store in split] for split in (stores.train, stores.eval)
    )
    plan = plan_data(config, train_packs, eval_packs, runtime)

    def in_training(batch: JudgedAnswers) -> JudgedAnswers:
        places = [(sample_id, *plan.order(sample_id)) for sample_id in batch.sample_ids]
        return collate_answers([(sample_id, train_others[source].pack(index)) for sample_id, source, index in places])

    def held_out(batch: JudgedAnswers) -> JudgedAnswers:
        places = [(sample_id, *plan.eval_place(sample_id)) for sample_id in batch.sample_ids]
        return collate_answers([(sample_id, eval_others[source].pack(index)) for sample_id, source, index in places])

    runtime.say(_balance(config, stores.train))
    rank, world_size = runtime.rank, runtime.world_size
    stored = plan.batches(collate_answers, runtime)
    objective = JudgedPreference(
        preference_options(config.preference).beta,
        config.preference.desirable_weight,
        config.preference.undesirable_weight,
    )
    evaluate = HeldOutAnswers(plan, rank, world_size, runtime.device, runtime.gather_floats, objective, held_out)
    return Parts(plan, stored, KlBatches(stored, in_training, module, runtime), objective, evaluate)


def _balance(config: PreferenceStageConfig, stores: Sequence[TokenStore]) -> str:
    """How many answers of each kind there are, and a warning where their weights leave them far apart."""
    desirable = np.concatenate([desirable_answers(store) for store in stores])
    good, bad = int(desirable.sum()), int((~desirable).sum())
    told = f"{good:,} desirable and {bad:,} undesirable answers"
    ratio = good * config.preference.desirable_weight / max(bad * config.preference.undesirable_weight, 1e-9)
    if 1 <= ratio <= 4 / 3:  # Ethayarajh 2024, equation 8
        return told
    return (
        f"{told}: warning: weighted, {ratio:.3g} to 1, where KTO's paper wants 1 to 4/3: set "
        "preference.desirable_weight or preference.undesirable_weight"
    )
