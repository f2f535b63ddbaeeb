"""Logprobs of the reference for every answer: computed once, before training, and kept beside the tokens.

The reference is the model as it is loaded. Its logprobs, summed over each answer, go into the folder of the token
store, in a file named after a fingerprint of the model, weights and configuration, so that later runs on the same data
and model only read them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from llmtrain.data.loader.batches import Collate, rank_batches
from llmtrain.data.packing.documents import Pack
from llmtrain.data.sources.files import fingerprint
from llmtrain.data.store.token_store import TokenStore
from llmtrain.protocols import Array, Ranks, Report
from llmtrain.system.counted import counted
from llmtrain.system.files import exclusive, write_bytes
from llmtrain.system.precision import reading

REPORT_SECONDS = 30


class AnswerPacks(Protocol):
    """A store in packs, each of whole documents with one answer."""

    @property
    def store(self) -> TokenStore: ...
    @property
    def num_packs(self) -> int: ...
    def pack(self, index: int) -> Pack: ...
    def documents(self, index: int) -> list[int]: ...  # of a pack, in the order of its answers


@dataclass(frozen=True)
class Reference:
    """The reference model, before an engine takes the module over."""

    module: nn.Module  # gives logprobs of labels, on its device
    base: Mapping[str, Any]  # weights and configuration, as `base_facts` gives them
    packs_per_microbatch: int
    ranks: Ranks
    report: Report

    def logprobs(self, packs: AnswerPacks, collate: Collate[Any], *, reads: str) -> Array:
        """The logprob of each document's answer in nats, (documents,) float32: read, or computed by all ranks.

        `reads` names what the packs hold of a document; it is part of the fingerprint. Raises ValueError if the store's
        folder cannot be written. Collective.
        """
        store = packs.store
        if not store.num_documents:
            return np.zeros(0, dtype=np.float32)
        key = fingerprint({"base": self.base, "dtype": str(self.ranks.dtype), "reads": reads})
        path = store.path / f"{store.split}.reference-{key}"
        if not self.ranks.any(not _is_whole(path, store)):
            self.report(f"reference logprobs of {counted(store.num_documents, 'answer')}: found in {path}")
            return np.fromfile(path, dtype=np.float32)
        started = time.monotonic()
        logprobs = self._computed(packs, collate)
        with exclusive(store.path, self.report):
            if not _is_whole(path, store):
                write_bytes(path, logprobs.tobytes())
        seconds = time.monotonic() - started
        self.report(
            f"reference logprobs of {counted(store.num_documents, 'answer')}: computed in {seconds:.0f} s, "
            f"kept in {path}"
        )
        return logprobs

    def _computed(self, packs: AnswerPacks, collate: Collate[Any]) -> Array:
        """Each rank takes every world_size-th pack, with dropout off."""
        ranks, num_packs = self.ranks, packs.num_packs
        found = np.zeros(packs.store.num_documents)
        num_done, reported = 0, time.monotonic()
        for batch in rank_batches(
            range(num_packs), packs.pack, self.packs_per_microbatch, ranks.rank, ranks.world_size, collate
        ):
            with reading(self.module, ranks.device, ranks.dtype):
                logprobs = self.module(batch.to(ranks.device)).logprobs.double().cpu()
            if batch.sample_ids:
                documents = [document for pack in batch.sample_ids for document in packs.documents(pack)]
                found[documents] = [float(answer.sum()) for answer in logprobs.split(batch.answer_lengths)]
            num_done += len(batch.sample_ids) * ranks.world_size
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                self.report(f"reference logprobs: {min(1.0, num_done / num_packs):.0%} of the answers computed")
        # Each document is nonzero on one rank, so the sum over ranks is its logprob.
        return np.array(ranks.sum_floats(found.tolist()), dtype=np.float32)


def _is_whole(path: Path, store: TokenStore) -> bool:
    return path.is_file() and path.stat().st_size == 4 * store.num_documents
