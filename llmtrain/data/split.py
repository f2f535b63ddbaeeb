"""Which documents are held out: a pure function of each one's content, so that added data moves none of them."""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

from llmtrain.data.ledger import Split

SPLIT_SALT = b"llmtrain eval"


class Digestible(Protocol):
    """What has 16 bytes that depend on its content alone."""

    def digest(self) -> bytes: ...


def eval_share(document: Digestible) -> float:
    """A number in [0, 1), uniform over documents: one below `data.eval_fraction` is held out."""
    digest = blake2b(document.digest(), digest_size=8, person=SPLIT_SALT).digest()
    return int.from_bytes(digest, "little") / 2**64


def split_of(document: Digestible, eval_fraction: float) -> Split:
    """The split that a document falls into."""
    return "eval" if eval_fraction > 0 and eval_share(document) < eval_fraction else "train"
