"""Stores and batch sizes -> what comes when: the number of steps, the sample order, the held-out packs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from llmtrain.config import DataConfig, EvalConfig, TrainConfig
from llmtrain.data.loader import StoredBatches
from llmtrain.data.order import SampleOrder, permuted_index
from llmtrain.data.pack import Pack, num_stream_packs, stream_pack
from llmtrain.data.store import TokenStore

EVAL_KEY = 0  # the held-out sample is the same for every run and seed


@dataclass(frozen=True)
class DataPlan:
    """Everything that is fixed about the data of a run before its first step."""

    train: Sequence[TokenStore]
    eval: Sequence[TokenStore]
    order: SampleOrder
    max_seq_len: int
    isolate_documents: bool
    num_steps: int
    packs_per_step: int
    packs_per_microbatch: int
    num_eval_packs: int

    def batches(self, rank: int, world_size: int) -> StoredBatches:
        """This rank's batch source."""
        return StoredBatches(
            self.order,
            self.train_pack,
            num_steps=self.num_steps,
            packs_per_step=self.packs_per_step,
            packs_per_microbatch=self.packs_per_microbatch,
            rank=rank,
            world_size=world_size,
        )

    def train_pack(self, source: int, index: int) -> Pack:
        return stream_pack(self.train[source], index, self.max_seq_len, self.isolate_documents)

    def eval_pack(self, index: int) -> Pack:
        """Held-out pack number `index`; where not all are evaluated, a fixed spread over all of them."""
        counts = [num_stream_packs(store.num_tokens, self.max_seq_len) for store in self.eval]
        total = sum(counts)
        index = index if self.num_eval_packs == total else permuted_index(index, total, EVAL_KEY)
        for store, count in zip(self.eval, counts, strict=True):
            if index < count:
                return stream_pack(store, index, self.max_seq_len, self.isolate_documents)
            index -= count
        raise IndexError(index)

    def account(self, step: int, tokens_trained: int, skipped_samples: int) -> dict[str, float | int]:
        """What `ledger.json` says of training: `tokens_trained` so far against those an epoch can train on.

        Within its document each token but the first is predicted; without isolation, each but a store's first.
        """
        unpredicted = sum(store.num_documents if self.isolate_documents else 1 for store in self.train)
        return {
            "steps": step,
            "steps_planned": self.num_steps,
            "packs_per_step": self.packs_per_step,
            "packs_per_epoch": self.order.epoch_size,
            "tokens_per_epoch": sum(store.num_tokens for store in self.train) - unpredicted,
            "tokens_trained": tokens_trained,
            "epochs": step * self.packs_per_step / self.order.epoch_size,
            "skipped_samples": skipped_samples,
        }

    @property
    def eval_bytes_per_token(self) -> float:
        return sum(store.num_bytes for store in self.eval) / sum(store.num_tokens for store in self.eval)

    @property
    def mean_segment_tokens(self) -> float:
        """Mean length of a segment, from the numbers of documents and packs."""
        tokens = sum(store.num_tokens for store in self.train)
        bounds = self.order.epoch_size + sum(store.num_documents for store in self.train) * self.isolate_documents
        return tokens / bounds


def plan_data(
    data: DataConfig,
    train: TrainConfig,
    evaluation: EvalConfig,
    train_stores: Sequence[TokenStore],
    eval_stores: Sequence[TokenStore],
    *,
    seed: int,
    world_size: int,
) -> DataPlan:
    """Fix the order and the number of steps of a run.

    Raises ValueError where a step has fewer packs than there are ranks, so that some would train on nothing.
    """
    num_packs = [num_stream_packs(store.num_tokens, data.max_seq_len) for store in train_stores]
    weights = [source.weight for source in data.train if source.weight is not None]
    packs_per_step = train.global_batch_tokens // data.max_seq_len
    if packs_per_step < world_size:
        raise ValueError(
            f"train.global_batch_tokens={train.global_batch_tokens} is {packs_per_step} packs of data.max_seq_len="
            f"{data.max_seq_len} for {world_size} processes: raise it to at least {world_size * data.max_seq_len}"
        )
    order = SampleOrder(num_packs, weights or None, seed)
    num_steps = train.steps
    if num_steps is None:
        assert train.epochs is not None
        num_steps = math.ceil(Fraction(str(train.epochs)) * order.epoch_size / packs_per_step)
    num_eval_packs = sum(num_stream_packs(store.num_tokens, data.max_seq_len) for store in eval_stores)
    if evaluation.tokens is not None:
        num_eval_packs = min(num_eval_packs, math.ceil(evaluation.tokens / data.max_seq_len))
    return DataPlan(
        train=train_stores,
        eval=eval_stores,
        order=order,
        max_seq_len=data.max_seq_len,
        isolate_documents=data.isolate_documents,
        num_steps=num_steps,
        packs_per_step=packs_per_step,
        packs_per_microbatch=train.microbatch_tokens // data.max_seq_len,
        num_eval_packs=num_eval_packs,
    )
