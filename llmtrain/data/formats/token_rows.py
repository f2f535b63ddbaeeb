"""Rows that are tokenized already: `input_ids`, and which of them are trained, by `labels` or a mask.

{"input_ids": [5, 6, 7, 2], "labels": [-100, -100, 7, 2]}          as transformers has them, not shifted
{"input_ids": [5, 6, 7, 2], "loss_mask": [0, 0, 1, 1]}             1 where a token is trained, or its weight
{"input_ids": [5, 6, 7, 2, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0]}    what is padding is left out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from llmtrain.data.formats.faults import UnfitRow, kind
from llmtrain.data.sources.documents import TEXT_FIELDS
from llmtrain.data.sources.rows import Fields
from llmtrain.data.sources.weight_values import LARGEST
from llmtrain.system.finite import is_number

IDS, LABELS, ATTENTION = "input_ids", "labels", "attention_mask"
MASKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask")
"""Fields that may say which tokens are trained."""
POSITIONS = "position_ids"
SEGMENTS = ("seq_idx", "segment_ids", "sequence_ids", "document_ids", "doc_ids")
"""Fields that may name the document of each token."""
BOUNDS = {"seq_lengths": 1, "seq_lens": 1, "sequence_lengths": 1, "cu_seqlens": 2, "cu_seq_lens_q": 2}
"""Fields that may hold the lengths or bounds of documents -> how many those of one document are."""
IGNORED_LABEL = -100
LARGEST_ID = (1 << 32) - 1


@dataclass(frozen=True)
class TokenRow:
    """The ids of a row, unchanged."""

    ids: tuple[int, ...]
    weights: tuple[float, ...] | None  # of each token in the loss, 0: not trained; None: all are trained
    where: str  # file:line, for messages to the user
    weight: float = 1.0  # of the whole row, by which those are multiplied

    @property
    def num_bytes(self) -> int:
        """Those of the ids, four each: how much text they are, only their tokenizer knows."""
        return 4 * len(self.ids)

    def digest(self) -> bytes:
        """16 bytes that depend on the ids alone."""
        return blake2b(np.array(self.ids, dtype=np.uint32).tobytes(), digest_size=16).digest()


def has_ids(row: Fields) -> bool:
    """Whether a row is a list of ids."""
    return isinstance(row.get(IDS), list | np.ndarray)


def is_ids_alone(row: Fields) -> bool:
    """Whether a row is a list of ids and has no text that it could be read as."""
    return has_ids(row) and not any(isinstance(row.get(name), str) for name in TEXT_FIELDS)


def mask_fields(row: Fields) -> list[str]:
    """The fields that say which tokens of a row are trained."""
    return [name for name in (LABELS, *MASKS) if row.get(name) is not None]


def token_row(row: Fields, where: str) -> TokenRow:
    """A row's ids without padding. Raises UnfitRow."""
    ids = _numbers(row, IDS)
    if not ids:
        raise UnfitRow("no token", f"'{IDS}' is empty")
    wrong = next((place for place, each in enumerate(ids) if not _is_id(each)), None)
    if wrong is not None:
        raise UnfitRow("not token ids", f"'{IDS}' holds {ids[wrong]!r} at place {wrong}, which is no id of a token")
    named = mask_fields(row)
    if len(named) > 1:
        raise UnfitRow(
            "contradictory masks", f"{' and '.join(map(repr, named))} each say what is trained: leave one of them out"
        )
    weights = None if not named else (_by_labels(row, ids) if named[0] == LABELS else _by_mask(row, named[0], ids))
    kept = _kept(row, ids)
    _require_one_document(row, ids, kept)
    return TokenRow(
        ids=tuple(int(each) for each in ids[kept]),
        weights=None if weights is None else tuple(weights[kept]),
        where=where,
    )


def require_known(row: TokenRow, vocab_size: int, tokenizer: str) -> None:
    """Raises UnfitRow for ids that are none of a tokenizer's."""
    unknown = next((each for each in row.ids if each >= vocab_size), None)
    if unknown is not None:
        raise UnfitRow(
            "ids of another tokenizer",
            f"the id {unknown} is none of the {vocab_size} of the tokenizer {tokenizer}: give ids of that one, or text",
        )


def _by_labels(row: Fields, ids: Sequence[Any]) -> list[float]:
    labels = _numbers(row, LABELS, len(ids))
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, IGNORED_LABEL):
            raise UnfitRow(
                "labels are not the ids",
                f"'{LABELS}' holds {label!r} at place {place}, where '{IDS}' holds {token!r}: a label is the id of its "
                f"own place, not shifted, or {IGNORED_LABEL}",
            )
    return [float(label != IGNORED_LABEL) for label in labels]


def _by_mask(row: Fields, name: str, ids: Sequence[Any]) -> list[float]:
    mask = _numbers(row, name, len(ids))
    for place, value in enumerate(mask):
        if not isinstance(value, bool) and not (is_number(value) and 0 <= value <= LARGEST):
            raise UnfitRow(
                "malformed mask", f"{name!r} holds {value!r} at place {place}: give 0, 1, or a weight to {LARGEST:g}"
            )
    return [float(value) for value in mask]


def _kept(row: Fields, ids: Sequence[Any]) -> slice:
    """The tokens that are no padding, which is before or after them."""
    if row.get(ATTENTION) is None:
        return slice(None)
    given = _numbers(row, ATTENTION, len(ids))
    wrong = next((place for place, each in enumerate(given) if each not in (0, 1)), None)
    if wrong is not None:
        raise UnfitRow(
            "malformed attention mask",
            f"'{ATTENTION}' holds {given[wrong]!r} at place {wrong}: 1 is a token, 0 padding; give several documents "
            "as several rows",
        )
    mask = [bool(each) for each in given]
    if not any(mask):
        raise UnfitRow("no token", f"'{ATTENTION}' is 0 everywhere")
    start, end = mask.index(True), len(mask) - mask[::-1].index(True)
    if not all(mask[start:end]):
        raise UnfitRow(
            "holes in the attention mask", f"'{ATTENTION}' is 0 between tokens: only padding can be left out"
        )
    return slice(start, end)


def _require_one_document(row: Fields, ids: Sequence[Any], kept: slice) -> None:
    """Raises UnfitRow for a row that holds several documents, which would attend to each other as one."""
    several = None
    if row.get(POSITIONS) is not None:
        positions = _numbers(row, POSITIONS, len(ids))[kept]
        several = POSITIONS if positions != list(range(positions[0], positions[0] + len(positions))) else None
    for name in (name for name in SEGMENTS if isinstance(row.get(name), list | np.ndarray)):
        segments = _numbers(row, name)
        several = name if len(segments) == len(ids) and len(set(map(str, segments[kept]))) > 1 else several
    for name, fewest in ((name, fewest) for name, fewest in BOUNDS.items() if row.get(name) is not None):
        several = name if len(_numbers(row, name)) > fewest else several
    if several is not None:
        raise UnfitRow(
            "several documents in a row",
            f"{several!r} says that the row is several documents, which would be trained as one: give each as a row",
        )


def _numbers(row: Fields, name: str, length: int | None = None) -> list[Any]:
    value = row[name]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list):
        raise UnfitRow("not token ids", f"{name!r} holds {kind(value)}, not a list")
    if length is not None and len(value) != length:
        raise UnfitRow("lengths differ", f"{name!r} has {len(value)} elements, '{IDS}' {length}: each token needs one")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID
