"""Packed stores and batch sizes -> what comes when: the number of steps, the sample order, the held-out packs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from llmtrain.config.recipes import RecipeConfig
from llmtrain.data.loader.batches import Collate, Process, StoredBatches
from llmtrain.data.loader.order import SampleOrder, permuted_index
from llmtrain.data.packing.documents import Pack, Packing
from llmtrain.protocols import BatchType

EVAL_KEY = 0  # the held-out sample is the same for every run and seed


@dataclass(frozen=True)
class DataPlan:
    """Everything that is fixed about the data of a run before its first step."""

    train: Sequence[Packing]
    eval: Sequence[Packing]
    order: SampleOrder
    num_steps: int
    packs_per_step: int
    packs_per_microbatch: int
    num_eval_packs: int
    eval_bytes_per_token: float | None  # None: bits per byte would mean nothing

    def batches(self, collate: Collate[BatchType], process: Process) -> StoredBatches[BatchType]:
        """The batch source of a process: what `collate` makes of its packs."""
        return StoredBatches(
            self.train_pack,
            collate,
            process,
            num_steps=self.num_steps,
            packs_per_step=self.packs_per_step,
            packs_per_microbatch=self.packs_per_microbatch,
        )

    def train_pack(self, sample_id: int) -> Pack:
        """The pack at a position of the sample order."""
        source, index = self.order(sample_id)
        return self.train[source].pack(index)

    def eval_pack(self, index: int) -> Pack:
        """Held-out pack number `index`."""
        source, pack = self.eval_place(index)
        return self.eval[source].pack(pack)

    def eval_place(self, index: int) -> tuple[int, int]:
        """(source, pack) of held-out pack number `index`; where not all are evaluated, a fixed spread over all."""
        counts = [packing.num_packs for packing in self.eval]
        total = sum(counts)
        index = index if self.num_eval_packs == total else permuted_index(index, total, EVAL_KEY)
        for source, count in enumerate(counts):
            if index < count:
                return source, index
            index -= count
        raise IndexError(index)

    def account(self, step: int, tokens_trained: int, skipped_samples: int) -> dict[str, float | int]:
        """What `ledger.json` holds of training: `tokens_trained` so far against those an epoch trains on."""
        return {
            "steps": step,
            "steps_planned": self.num_steps,
            "packs_per_step": self.packs_per_step,
            "packs_per_epoch": self.order.epoch_size,
            "tokens_per_epoch": sum(packing.num_targets for packing in self.train),
            "tokens_trained": tokens_trained,
            "epochs": step * self.packs_per_step / self.order.epoch_size,
            "skipped_samples": skipped_samples,
        }

    @property
    def trained_share(self) -> float:
        """Share of the training tokens that are targets."""
        return sum(packing.num_targets for packing in self.train) / sum(packing.num_tokens for packing in self.train)

    @property
    def mean_segment_tokens(self) -> float:
        """Mean length of a segment."""
        return sum(packing.num_tokens for packing in self.train) / sum(packing.num_segments for packing in self.train)


def plan_data(
    config: RecipeConfig,
    train_packs: Sequence[Packing],
    eval_packs: Sequence[Packing],
    process: Process,
    *,
    eval_bytes: int | None = None,
) -> DataPlan:
    """Fix the order and the number of steps of a run, one packing per source.

    `eval_bytes` are the UTF-8 bytes of the held-out text, where every token of it is a target; None: bits per byte
    would mean nothing. Raises ValueError if a step has fewer packs than there are ranks.
    """
    data, train, world_size = config.data, config.train, process.world_size
    num_packs = [packing.num_packs for packing in train_packs]
    weights = [source.weight for source in data.train if source.weight is not None]
    packs_per_step = train.global_batch_tokens // data.max_seq_len
    if packs_per_step < world_size:
        raise ValueError(
            f"train.global_batch_tokens={train.global_batch_tokens} is {packs_per_step} packs of data.max_seq_len="
            f"{data.max_seq_len} for {world_size} processes: raise it to at least {world_size * data.max_seq_len}"
        )
    order = SampleOrder(num_packs, weights or None, config.run.seed)
    num_steps = train.steps
    if num_steps is None:
        assert train.epochs is not None
        num_steps = math.ceil(Fraction(str(train.epochs)) * order.epoch_size / packs_per_step)
    num_eval_packs = sum(packing.num_packs for packing in eval_packs)
    if config.eval.tokens is not None:
        num_eval_packs = min(num_eval_packs, math.ceil(config.eval.tokens / data.max_seq_len))
    eval_tokens = sum(packing.num_tokens for packing in eval_packs)
    return DataPlan(
        train=train_packs,
        eval=eval_packs,
        order=order,
        num_steps=num_steps,
        packs_per_step=packs_per_step,
        packs_per_microbatch=train.microbatch_tokens // data.max_seq_len,
        num_eval_packs=num_eval_packs,
        eval_bytes_per_token=eval_bytes / eval_tokens if eval_bytes and eval_tokens else None,
    )
