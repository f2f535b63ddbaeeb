"""A model's loss on what a run held out, document by document: conversations, pairs of answers, labelled answers.

A document is what a pack has of it, known by a hash of its tokens, so that two runs that held out the same compare too.
All that an evaluation takes are measured, so the loss is the one that the run's log gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Generic

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.batch import IGNORE_INDEX, LabelledAnswers, PackedTokens, PreferencePairs
from llmtrain.data.loader.batches import Collate, collate, rank_batches
from llmtrain.data.loader.plan import DataPlan
from llmtrain.data.packing.answers import collate_answers
from llmtrain.data.packing.pairs import collate_pairs
from llmtrain.eval.before_after.measure import Measurement
from llmtrain.eval.before_after.together import together
from llmtrain.eval.tasks.results import NATS_PER_TOKEN, ItemResult, Measure, TaskResult
from llmtrain.eval.tasks.shares import Share
from llmtrain.protocols import BatchType, Ranks

SOURCE = "what the run held out"
HELD_OUT, DESIRABLE, UNDESIRABLE = "held_out", "desirable", "undesirable"
CHOSEN_NATS = Measure("chosen_nats_per_token", False, "per weight", "chosen_tokens")
REJECTED_NATS = Measure("rejected_nats_per_token", None, "per weight", "rejected_tokens")
PREFERS_CHOSEN = Measure("prefers_chosen", True, "share")

ItemsOf = Callable[[nn.Module, BatchType], Iterator[ItemResult]]
"""(module, a microbatch on its device) -> its documents' items."""


@dataclass(frozen=True)
class HeldOutItems(Generic[BatchType]):
    """The loss of a run's module on held-out documents, split among ranks; calling it measures."""

    plan: DataPlan
    ranks: Ranks
    collate: Collate[BatchType]
    items_of: ItemsOf[BatchType]
    measures: Mapping[str, Sequence[Measure]]  # of each task that documents are items of
    segments_per_item: int = 1

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> list[TaskResult] | None:
        """The items of all ranks, on the main process. Raises Unmeasured in one process. Collective.

        It is short, so that it does not stop: ranks that compute a pack together would have to agree on it.
        """

        def mine() -> Share:
            plan, ranks = self.plan, self.ranks
            items: list[ItemResult] = []
            batches = rank_batches(
                range(plan.num_eval_packs),
                plan.eval_pack,
                plan.packs_per_microbatch,
                ranks.rank,
                ranks.world_size,
                self.collate,
            )
            for batch in batches:
                items += self.items_of(model, batch.to(ranks.device))
            return [(ranks.rank + number * ranks.world_size, item) for number, item in enumerate(items)]

        found = together(mine, self.ranks, calls_collectives=True)  # the engine's, in the module's forward
        if found is None:
            return None
        by_task = {task: [item for item in found if item.task == task] for task in self.measures}
        return [TaskResult(task, self.measures[task], items, {"source": SOURCE}) for task, items in by_task.items()]

    @property
    def num_documents(self) -> int:
        """Documents, or pairs, that are measured."""
        segments = (len(self.plan.eval_pack(pack).segment_lengths) for pack in range(self.plan.num_eval_packs))
        return sum(segments) // self.segments_per_item


def held_out_conversations(plan: DataPlan, ranks: Ranks) -> dict[str, Measurement]:
    """The loss of what an SFT run holds out."""
    return {HELD_OUT: HeldOutItems(plan, ranks, collate, conversations, {HELD_OUT: [NATS_PER_TOKEN]})}


def held_out_pairs(plan: DataPlan, ranks: Ranks) -> dict[str, Measurement]:
    """The losses of both answers of held-out pairs."""
    measures = {HELD_OUT: [CHOSEN_NATS, REJECTED_NATS, PREFERS_CHOSEN]}
    return {HELD_OUT: HeldOutItems(plan, ranks, collate_pairs, pairs, measures, 2)}


def held_out_labelled(plan: DataPlan, ranks: Ranks) -> dict[str, Measurement]:
    """The losses of held-out answers by their label."""
    either = replace(NATS_PER_TOKEN, higher_is_better=None)
    measures = {DESIRABLE: [NATS_PER_TOKEN], UNDESIRABLE: [either]}
    return {HELD_OUT: HeldOutItems(plan, ranks, collate_answers, labelled_answers, measures)}


def conversations(model: nn.Module, batch: PackedTokens) -> Iterator[ItemResult]:
    """Each document's loss, by the weights of its tokens; those without a trained token are left out."""
    losses = model(batch).token_losses
    if not batch.sample_ids:
        return
    labels = batch.labels.cpu()
    is_label = labels != IGNORE_INDEX
    weights = is_label.double() if batch.label_weights is None else batch.label_weights.cpu().double()
    of_token = torch.zeros(len(labels), dtype=torch.float64)
    of_token[is_label] = losses.cpu().double()
    lengths = list(batch.segment_lengths)
    parts = (each.split(lengths) for each in (batch.input_ids.cpu(), labels, of_token, weights))
    for ids, wanted, loss, weight in zip(*parts, strict=True):
        if tokens := float(weight.sum()):
            yield _item(HELD_OUT, ids, wanted, {NATS_PER_TOKEN.name: float(loss.sum()), "tokens": tokens})


def pairs(model: nn.Module, batch: PreferencePairs) -> Iterator[ItemResult]:
    """Of each pair the loss of both answers, and whether the chosen one is likelier per token; a tie is not."""
    logprobs = model(batch).logprobs
    if not batch.num_pairs:
        return
    losses = _answer_losses(logprobs, batch.answer_lengths)
    ends = [prefix + sum(batch.segment_lengths[2 * i : 2 * i + 2]) for i, prefix in enumerate(batch.prefix_lengths)]
    parts = zip(batch.input_ids.cpu().split(ends), batch.labels.cpu().split(ends), strict=True)
    for number, (ids, labels) in enumerate(parts):
        chosen, rejected = losses[2 * number : 2 * number + 2]
        num_chosen, num_rejected = batch.answer_lengths[2 * number : 2 * number + 2]
        if num_chosen and num_rejected:
            values = {
                CHOSEN_NATS.name: chosen,
                "chosen_tokens": float(num_chosen),
                REJECTED_NATS.name: rejected,
                "rejected_tokens": float(num_rejected),
                PREFERS_CHOSEN.name: float(chosen / num_chosen < rejected / num_rejected),
            }
            yield _item(HELD_OUT, ids, labels, values)


def labelled_answers(model: nn.Module, batch: LabelledAnswers) -> Iterator[ItemResult]:
    """The loss of each answer, an item of its label."""
    logprobs = model(batch).logprobs
    if not batch.sample_ids:
        return
    losses = _answer_losses(logprobs, batch.answer_lengths)
    lengths = list(batch.segment_lengths)
    parts = zip(batch.input_ids.cpu().split(lengths), batch.labels.cpu().split(lengths), strict=True)
    known = zip(parts, losses, batch.answer_lengths, batch.desirable.tolist(), strict=True)
    for (ids, labels), loss, tokens, is_desirable in known:
        if tokens:
            task = DESIRABLE if is_desirable else UNDESIRABLE
            yield _item(task, ids, labels, {NATS_PER_TOKEN.name: loss, "tokens": float(tokens)})


def _answer_losses(logprobs: Float[Tensor, " tokens"], answer_lengths: Sequence[int]) -> list[float]:
    """Nats of each answer."""
    return [-float(each.double().sum()) for each in logprobs.cpu().split(list(answer_lengths))]


def _item(task: str, ids: Tensor, labels: Tensor, values: dict[str, float]) -> ItemResult:
    digest = blake2b(repr((ids.tolist(), labels.tolist())).encode(), digest_size=8).hexdigest()
    return ItemResult(task, digest, "held out", values)
