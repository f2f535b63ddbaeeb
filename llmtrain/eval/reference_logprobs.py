"""What the reference says of every answer: computed once, before anything is trained, and kept beside the tokens.

The reference is the model as it is loaded. Its logprobs, summed over each answer, go into the folder of the token
store, under a name that stands for the model, so later runs on the same pairs and model only read them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from llmtrain.data.loader.batches import Collate, rank_batches
from llmtrain.data.packing.documents import Pack
from llmtrain.data.sources.files import fingerprint
from llmtrain.data.store.token_store import TokenStore
from llmtrain.protocols import Array
from llmtrain.system.files import exclusive, write_bytes
from llmtrain.system.precision import reading
from llmtrain.train.runtime import Runtime

REPORT_SECONDS = 30


class AnswerPacks(Protocol):
    """A store in packs, each of whole documents with one answer."""

    @property
    def store(self) -> TokenStore: ...
    @property
    def num_packs(self) -> int: ...
    def pack(self, index: int) -> Pack: ...
    def documents(self, index: int) -> list[int]: ...  # of a pack, in the order of its answers


def reference_logprobs(
    module: nn.Module,
    packs: AnswerPacks,
    collate: Collate[Any],
    *,
    reads: str,
    packs_per_microbatch: int,
    base_fingerprint: str,
    runtime: Runtime,
) -> Array:
    """The reference's logprob of each document's answer in nats, (documents,) float32: read, or computed by all ranks.

    `module` gives logprobs of labels, on its device and before an engine has it; `reads` says what the packs lay of a
    document. Raises ValueError where they cannot be kept in the store's folder.
    """
    store = packs.store
    if not store.num_documents:
        return np.zeros(0, dtype=np.float32)
    key = fingerprint({"base": base_fingerprint, "dtype": str(runtime.dtype), "reads": reads})
    path = store.path / f"{store.split}.reference-{key}"
    if not runtime.any(not _is_whole(path, store)):
        runtime.say(f"reference logprobs of {store.num_documents:,} answers: found in {path}")
        return np.fromfile(path, dtype=np.float32)
    started = time.monotonic()
    found = _computed(module, packs, collate, packs_per_microbatch, runtime)
    with exclusive(store.path, runtime.say):
        if not _is_whole(path, store):
            write_bytes(path, found.tobytes())
    seconds = time.monotonic() - started
    runtime.say(f"reference logprobs of {store.num_documents:,} answers: computed in {seconds:.0f} s, kept in {path}")
    return found


def _is_whole(path: Path, store: TokenStore) -> bool:
    return path.is_file() and path.stat().st_size == 4 * store.num_documents


def _computed(
    module: nn.Module, packs: AnswerPacks, collate: Collate[Any], packs_per_microbatch: int, runtime: Runtime
) -> Array:
    """Each rank takes a share of the packs, with dropout off."""
    found = np.zeros(packs.store.num_documents)
    num_done, reported = 0, time.monotonic()
    for batch in rank_batches(
        range(packs.num_packs), packs.pack, packs_per_microbatch, runtime.rank, runtime.world_size, collate
    ):
        with reading(module, runtime.device, runtime.dtype):
            logprobs = module(batch.to(runtime.device)).logprobs.double().cpu()
        if batch.sample_ids:
            documents = [document for pack in batch.sample_ids for document in packs.documents(pack)]
            found[documents] = [float(answer.sum()) for answer in logprobs.split(batch.answer_lengths)]
        num_done += len(batch.sample_ids) * runtime.world_size
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            runtime.say(f"reference logprobs: {min(1.0, num_done / packs.num_packs):.0%} of the answers computed")
    return np.array(runtime.sum_floats(found.tolist()), dtype=np.float32)  # a document is 0 on all ranks but one
