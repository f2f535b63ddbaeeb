"""Packed stores and batch sizes -> what comes when: the sample order, the packs of the run, the held-out packs.

Weights are of tokens: a source of half of the tokens has half of them, however short its packs are. Its share of the
positions is therefore its weight divided by the mean tokens of its packs; a source of few packs is packed in several
passes, so that one position holds as many tokens of it as of a large source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llmtrain.config.recipes import RecipeConfig
from llmtrain.data.loader.batches import Collate, PacksOfRun, Process, StoredBatches
from llmtrain.data.loader.order import SampleOrder, permuted_index
from llmtrain.data.packing.documents import Pack, Packing
from llmtrain.protocols import BatchType
from llmtrain.system.counted import counted

EVAL_KEY = 0  # the held-out sample is the same for every run and seed
FEW_STEPS = 10  # of a run whose length follows from its data: it was hardly meant
LEAST_PACKS = 64  # of a weighted source: at most one of them is short


@dataclass(frozen=True)
class DataPlan:
    """Everything that is fixed about the data of a run before its first step."""

    config: RecipeConfig
    train: Sequence[Packing]
    eval: Sequence[Packing]
    order: SampleOrder
    num_packs: int  # that the run takes
    packs_per_step: int
    num_eval_packs: int
    eval_bytes_per_token: float | None  # None: bits per byte would mean nothing

    @property
    def num_steps(self) -> int:
        """Steps of the run, the last of which may have fewer packs."""
        return -(-self.num_packs // self.packs_per_step)

    @property
    def packs_per_microbatch(self) -> int:
        return self.config.train.microbatch_tokens // self.config.data.max_seq_len

    def batches(self, collate: Collate[BatchType], process: Process) -> StoredBatches[BatchType]:
        """The batch source of a process: what `collate` makes of its packs."""
        packs = PacksOfRun(
            num_packs=self.num_packs,
            per_step=self.packs_per_step,
            per_microbatch=self.packs_per_microbatch,
            epoch=self.epoch,
            replaces_skipped=self.config.train.epochs is None,
        )
        return StoredBatches(self.train_pack, collate, process, packs)

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

    def report(self) -> Iterator[str]:
        """What the run reads, in lines for the user: its epochs, or how often it repeats each weighted source."""
        epochs = self.num_packs / self.order.epoch_size
        steps = f"{counted(self.num_steps, 'step')} of {counted(self.packs_per_step, 'pack')}"
        last = self.num_packs - (self.num_steps - 1) * self.packs_per_step
        steps += f", the last of {last:,}" if last < self.packs_per_step else ""
        if self.order.is_weighted:
            yield f"training: {steps}; each source by its weight:"
            taken = self._tokens_taken(self.num_packs)
            for name, source, tokens in zip(self._names, self.config.data.train, taken, strict=True):
                times = tokens["times_read"]
                yield (
                    f"{name}: {tokens['tokens'] / max(_total(taken), 1):.3%} of the tokens, read {times:.4g} times"
                    + (f": warning: weight={source.weight:g} gives it none of the run's packs" if not times else "")
                )
            return
        plural = "" if epochs == 1 else "s"
        yield f"training: {epochs:.4g} epoch{plural} of {counted(self.order.epoch_size, 'pack')}, in {steps}"
        if self.num_packs < self.packs_per_step:
            yield (
                f"warning: train.epochs={self.config.train.epochs} is {counted(self.num_packs, 'pack')}, less than one "
                f"step: lower train.global_batch_tokens={self.config.train.global_batch_tokens}, or raise train.epochs"
            )
        elif self.config.train.epochs is not None and self.num_steps < FEW_STEPS:
            few = "1 step teaches" if self.num_steps == 1 else f"{self.num_steps} steps teach"
            yield (
                f"warning: {few} a model little: lower "
                f"train.global_batch_tokens={self.config.train.global_batch_tokens}, or raise "
                f"train.epochs={self.config.train.epochs}"
            )

    def epoch(self, num_packs: int) -> float:
        """How often the training data has been seen after so many packs.

        Of a weighted mixture, whose sources are read unequally often: the tokens taken over the tokens of all sources.
        """
        if not self.order.is_weighted:
            return num_packs / self.order.epoch_size
        taken = zip(self.train, self.order.taken(num_packs), strict=True)
        tokens = sum(count * packing.num_tokens / packing.num_packs for packing, count in taken)
        return tokens / sum(packing.num_tokens / packing.num_passes for packing in self.train)

    def account(self, step: int, tokens_trained: int, batches: StoredBatches[Any]) -> dict[str, Any]:
        """What `ledger.json` holds of training: the packs taken from `batches`, `tokens_trained` targets of them.

        Without weights, how many epochs that is, and the targets of one; with weights, the tokens of each source, and
        how often it was read.
        """
        account: dict[str, Any] = {
            "steps": step,
            "steps_planned": self.num_steps,
            "packs_per_step": self.packs_per_step,
            "packs": batches.num_taken,
            "tokens_trained": tokens_trained,
            "skipped_samples": batches.num_skipped,
        }
        if self.order.is_weighted:
            return account | {"sources": self._tokens_taken(batches.num_taken)}
        return account | {
            "packs_per_epoch": self.order.epoch_size,
            "tokens_per_epoch": sum(packing.num_targets for packing in self.train),
            "epochs": batches.epoch,
        }

    def _tokens_taken(self, num_packs: int) -> list[dict[str, Any]]:
        """Of each source of a weighted mixture, the tokens among the first `num_packs` packs, to within a pack."""
        return [
            {
                "source": source.path,
                "tokens": round(taken * packing.num_tokens / packing.num_packs),
                "times_read": taken * packing.num_passes / packing.num_packs,
            }
            for source, packing, taken in zip(
                self.config.data.train, self.train, self.order.taken(num_packs), strict=True
            )
        ]

    @property
    def _names(self) -> list[str]:
        return [f"data.train[{index}] ({source.path})" for index, source in enumerate(self.config.data.train)]


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
    would mean nothing. Raises ValueError if a step has fewer packs than there are ranks, and if a source, or what is
    held out, has no token to predict.
    """
    data, train, world_size = config.data, config.train, process.world_size
    packs_per_step = train.global_batch_tokens // data.max_seq_len
    if packs_per_step < world_size:
        raise ValueError(
            f"train.global_batch_tokens={train.global_batch_tokens} is {packs_per_step} packs of data.max_seq_len="
            f"{data.max_seq_len} for {world_size} processes: start at most {packs_per_step}, or, for another run, "
            f"raise it to at least {world_size * data.max_seq_len}"
        )
    for index, (source, packing) in enumerate(zip(data.train, train_packs, strict=True)):
        if not packing.num_targets:
            raise ValueError(f"data.train[{index}]={source.path}: no tokens to train on: {NO_TARGETS}; leave it out")
    weights = None
    if all(source.weight is not None for source in data.train):
        train_packs = [_in_enough_passes(packing, data.max_seq_len) for packing in train_packs]
        weights = [
            Fraction(source.weight or 0) * packing.num_packs / packing.num_tokens
            for source, packing in zip(data.train, train_packs, strict=True)
        ]
    as_given = data.order == "given"
    order = SampleOrder([packing.num_packs for packing in train_packs], weights, config.run.seed, as_given=as_given)
    num_packs = packs_per_step * (train.steps or 0)
    if train.epochs is not None:
        num_packs = max(1, math.floor(Fraction(str(train.epochs)) * order.epoch_size + Fraction(1, 2)))
    num_eval_packs = sum(packing.num_packs for packing in eval_packs)
    if config.eval.tokens is not None:
        num_eval_packs = min(num_eval_packs, math.ceil(config.eval.tokens / data.max_seq_len))
    eval_tokens = sum(packing.num_tokens for packing in eval_packs)
    if eval_packs and not any(packing.num_targets for packing in eval_packs):
        raise ValueError(f"no held-out tokens to evaluate on: {NO_TARGETS}; {EVAL_FIX}")
    return DataPlan(
        config=config,
        train=train_packs,
        eval=eval_packs,
        order=order,
        num_packs=num_packs,
        packs_per_step=packs_per_step,
        num_eval_packs=num_eval_packs,
        eval_bytes_per_token=eval_bytes / eval_tokens if eval_bytes and eval_tokens else None,
    )


NO_TARGETS = "every document is one token, which nothing before it predicts"
EVAL_FIX = "give data.eval, raise data.eval_fraction, or set data.eval_fraction=0"


def _in_enough_passes(packing: Packing, max_seq_len: int) -> Packing:
    """A source's packs, in as many passes as give LEAST_PACKS full ones, so that a short last one hardly counts."""
    return packing.repeated(max(1, -(-LEAST_PACKS * max_seq_len // packing.num_tokens)))


def _total(sources: Sequence[dict[str, Any]]) -> int:
    return sum(source["tokens"] for source in sources)
