"""Which answer each prompt of a store is given in place of its own: always one to another prompt.

Answers to one prompt may be anywhere in a store: next to each other, half a store away, or in a pair. Documents are
put in an order of their prompts' hashes, so that those of one prompt are together and prompts come in random order;
each takes the answer of the one that comes m places later, where m is the most answers that any prompt has.

    prompts a b a b c, in order a a b b c, m = 2    a takes the answers to b, b those to c and a, c one to a
"""

from __future__ import annotations

import numpy as np

from llmtrain.data.random_bits import all_mixed
from llmtrain.data.store.token_store import TokenStore
from llmtrain.system.typing import Array

MISMATCH = "mismatch-2"  # the name and version of what follows
TOKENS_AT_ONCE = 1 << 20


def mismatched_documents(store: TokenStore) -> Array:
    """For each document the one whose answer its prompt is given, (documents,) int64.

    Every answer is given to one prompt, unless a prompt has more than half of all answers: it then takes each of the
    others several times. Raises ValueError if all answers are to one prompt.
    """
    hashes = prompt_hashes(store)
    if not len(hashes):
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order[:1]]))
    if len(starts) < 2:
        raise ValueError(
            f"{store.path}: its {store.split} split has answers to one prompt only, and preference.loss=kto needs "
            "those of another to measure the KL by: give more rows"
        )
    sizes = np.diff(starts, append=len(order))
    num_others = len(order) - np.repeat(sizes, sizes)
    within = np.arange(len(order)) - np.repeat(starts, sizes)
    later = int(sizes.max()) - np.repeat(sizes, sizes)  # how far after the end of its prompt's documents
    chosen = np.repeat(starts + sizes, sizes) + (within + later) % num_others
    others = np.empty(len(order), dtype=np.int64)
    others[order] = order[chosen % len(order)]
    return others


def prompt_hashes(store: TokenStore) -> Array:
    """A hash of the tokens before each document's answer, (documents,) uint64."""
    assert store.trained is not None
    offsets = np.asarray(store.document_offsets)
    hashes = np.empty(store.num_documents, dtype=np.uint64)
    first = 0
    while first < store.num_documents:
        last = int(np.searchsorted(offsets, offsets[first] + TOKENS_AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        span = slice(int(offsets[first]), int(offsets[last]))
        hashes[first:last] = _hashes(store.tokens[span], store.trained[span], offsets[first : last + 1] - span.start)
        first = last
    return hashes


def _hashes(tokens: Array, trained: Array, offsets: Array) -> Array:
    """The same of some documents that follow each other, by their tokens, targets and bounds (documents + 1,)."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    answers = np.flatnonzero(trained)
    prompt_ends = answers[np.searchsorted(answers, starts)]
    place = np.arange(len(tokens)) - np.repeat(starts, lengths)
    in_prompt = np.arange(len(tokens)) < np.repeat(prompt_ends, lengths)
    mixed = all_mixed(all_mixed(tokens.astype(np.uint64)) + place.astype(np.uint64))
    return all_mixed(np.add.reduceat(np.where(in_prompt, mixed, np.uint64(0)), starts))
