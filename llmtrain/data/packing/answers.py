"""Stored answers that are labelled one by one -> packs -> LabelledAnswers.

They come from rows with a label, or from both sides of preference pairs: the chosen answer of a pair is desirable, the
rejected one is not. Each document also has a *mismatched* form, its prompt with the answer to another prompt of the
store (`mismatch`), from which the KL of a policy is estimated (Ethayarajh 2024, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch

from llmtrain.batch import IGNORE_INDEX, LabelledAnswers, empty_answers
from llmtrain.data.packing.documents import (
    BestFitPacking,
    DocumentLayout,
    Pack,
    best_fit_packing,
    next_token_labels,
    read_document,
)
from llmtrain.data.packing.mismatch import MISMATCH, mismatched_documents
from llmtrain.data.store.derived import derived
from llmtrain.data.store.token_store import TokenStore
from llmtrain.system.terminal import say
from llmtrain.system.typing import Array, Report


@dataclass(frozen=True)
class AnswerPack(Pack):
    """A pack of labelled answers with their prompts; every array (answers,)."""

    answer_lengths: tuple[int, ...]
    desirable: Array  # bool
    weights: Array  # float32
    ref_logprobs: Array | None  # float32; None: not known yet


def pack_answers(
    store: TokenStore,
    max_seq_len: int,
    report: Report = say,
    *,
    mismatched: bool = False,
    as_given: bool = False,
) -> BestFitPacking:
    """The packs of a store of labelled answers or of pairs.

    `mismatched` packs hold the same documents in the same order, each with the answer to another prompt; raises
    ValueError if the store has answers to one prompt only. `as_given` keeps the documents in their own order.
    """
    others = derived(store, MISMATCH, partial(mismatched_documents, store), report) if mismatched else None
    return best_fit_packing(store, AnswerLayout(store, max_seq_len, others), max_seq_len, report, as_given=as_given)


@dataclass(frozen=True)
class AnswerLayout:
    """Documents one by one, each with one answer and what is known of it."""

    store: TokenStore
    max_seq_len: int
    others: Array | None  # (documents,) int64: of mismatched documents, the one whose answer each has; None: its own
    name: ClassVar[str] = DocumentLayout.name
    group_size: ClassVar[int] = 1

    @property
    def lengths(self) -> Array:
        return np.diff(np.asarray(self.store.document_offsets))

    @property
    def num_tokens(self) -> int:
        return len(self.store.tokens)

    @property
    def num_targets(self) -> int:
        """The tokens of the answers."""
        assert self.store.trained is not None
        return int(np.count_nonzero(self.store.trained))

    def pack(self, groups: Sequence[int], ref_logprobs: Array | None) -> AnswerPack:
        """A pack of these documents. A label is the answer's next token, and there is none elsewhere."""
        parts = [self._document(document) for document in groups]
        labels = [next_token_labels(ids, trained) for ids, trained in parts]
        documents = list(groups)
        return AnswerPack(
            input_ids=np.concatenate([ids for ids, _ in parts]),
            labels=np.concatenate(labels),
            segment_lengths=tuple(len(ids) for ids, _ in parts),
            answer_lengths=tuple(int(np.count_nonzero(part != IGNORE_INDEX)) for part in labels),
            desirable=self._desirable[documents],
            weights=np.asarray(self.store.values["weight"])[documents],
            ref_logprobs=None if ref_logprobs is None else ref_logprobs[documents],
        )

    @cached_property
    def _desirable(self) -> Array:
        return desirable_answers(self.store)

    def _document(self, document: int) -> tuple[Array, Array]:
        """A document, or its prompt with the answer of another one, cut to `max_seq_len`.

        Of `why? yes` and `how? so` the first becomes `why? so`.
        """
        ids, trained = read_document(self.store, document)
        if self.others is None:
            return ids, trained
        other_ids, other_trained = read_document(self.store, int(self.others[document]))
        prompt, answer = ids[: int(trained.argmax())], slice(int(other_trained.argmax()), None)
        whole = np.concatenate([prompt, other_ids[answer]])[: self.max_seq_len]
        mask = np.concatenate([np.zeros(len(prompt), dtype=bool), other_trained[answer]])
        return whole, mask[: len(whole)]


def desirable_answers(store: TokenStore) -> Array:
    """Which documents' answers are desirable, (documents,) bool."""
    labels = store.values.get("desirable")
    return np.arange(store.num_documents) % 2 == 0 if labels is None else np.asarray(labels) > 0


def collate_answers(packs: Sequence[tuple[int, Pack]]) -> LabelledAnswers:
    """Packs of labelled answers, each with its sample id, end to end in one microbatch."""
    answer_packs = [pack for _, pack in packs if isinstance(pack, AnswerPack)]
    assert len(answer_packs) == len(packs)
    if not packs:
        return empty_answers()
    lengths = tuple(length for pack in answer_packs for length in pack.segment_lengths)
    ref_logprobs = [pack.ref_logprobs for pack in answer_packs if pack.ref_logprobs is not None]
    return LabelledAnswers(
        input_ids=torch.from_numpy(np.concatenate([pack.input_ids for pack in answer_packs])),
        labels=torch.from_numpy(np.concatenate([pack.labels for pack in answer_packs])),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        segment_lengths=lengths,
        answer_lengths=tuple(length for pack in answer_packs for length in pack.answer_lengths),
        desirable=torch.from_numpy(np.concatenate([pack.desirable for pack in answer_packs])),
        weights=torch.from_numpy(np.concatenate([pack.weights for pack in answer_packs])),
        ref_logprobs=torch.from_numpy(np.concatenate(ref_logprobs)) if ref_logprobs else None,
        sample_ids=tuple(sample_id for sample_id, _ in packs),
    )
