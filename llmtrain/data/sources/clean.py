"""Optional cleaning: documents in, fewer documents out, each drop counted by the step that made it.

Every step sees a document piece by piece, so one that is too large for memory is cleaned like any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

from llmtrain.config.data import CleanConfig, OnBadRow, Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents, iter_texts
from llmtrain.data.sources.near_duplicates import NearDuplicates
from llmtrain.data.sources.ngrams import Hashes, WordHashes, ngram_hashes
from llmtrain.data.sources.text import PIECE_CHARS, Document, cut_pieces

Drops = Callable[[Document], bool]
"""Whether a step drops a document."""


class Cleaner:
    """Cleans a run's sources in order; a duplicate is one of any document of this source or one before it."""

    def __init__(
        self, config: CleanConfig, sources: Sequence[Source], on_bad_row: OnBadRow, cache_dir: str | None = None
    ) -> None:
        self._config, self._sources, self._on_bad_row, self._cache_dir = config, sources, on_bad_row, cache_dir
        self._num_seen: int | None = 0  # sources that went through the steps; None: one went in part
        self._steps: dict[str, Drops] | None = None  # made on first use: a run that finds its stores needs none

    @property
    def spans_sources(self) -> bool:
        """Whether what is kept of a source depends on the sources before it."""
        return self._config.exact_dedup or self._config.near_dedup is not None

    def clean(self, index: int, documents: Iterator[Document], ledger: SourceLedger) -> Iterator[Document]:
        """The documents of source number `index` that every step lets through.

        Sources before it that did not go through the steps, because their stores were found, are read first.
        Raises ValueError if `rensa` is missing or an evaluation file cannot be read.
        """
        if self._steps is None or (self.spans_sources and (self._num_seen is None or self._num_seen > index)):
            self._steps, self._num_seen = cleaning_steps(self._config, self._cache_dir), 0
        if self.spans_sources:
            earlier, self._num_seen = self._sources[self._num_seen : index], None
            for source in earlier:
                unused = SourceLedger(path=source.path)
                deque(_kept(iter_documents(source, self._on_bad_row, unused), self._steps, unused), maxlen=0)
        yield from _kept(documents, self._steps, ledger)
        self._num_seen = index + 1


def _kept(documents: Iterator[Document], steps: dict[str, Drops], ledger: SourceLedger) -> Iterator[Document]:
    for document in documents:
        dropped_by = next((name for name, drops in steps.items() if drops(document)), None)
        if dropped_by is None:
            yield document
        else:
            ledger.drop(dropped_by, document.num_bytes)


def cleaning_steps(config: CleanConfig, cache_dir: str | None) -> dict[str, Drops]:
    """The steps that are on, by the name of their option, in the configuration's order."""
    steps: dict[str, Drops] = {}
    max_chars = config.max_chars
    if config.min_chars:
        steps["min_chars"] = lambda document: document.num_chars < config.min_chars
    if max_chars is not None:
        steps["max_chars"] = lambda document: document.num_chars > max_chars
    if config.min_alpha_fraction:
        steps["min_alpha_fraction"] = lambda document: alpha_fraction(document) < config.min_alpha_fraction
    if config.max_line_repeat_fraction < 1:
        limit = config.max_line_repeat_fraction
        steps["max_line_repeat_fraction"] = lambda document: line_repeat_fraction(document) > limit
    if config.exact_dedup:
        steps["exact_dedup"] = ExactDuplicates()
    if config.near_dedup is not None:
        steps["near_dedup"] = NearDuplicates(config.near_dedup, cache_dir)
    if config.decontaminate:
        steps["decontaminate"] = Contaminated(config.decontaminate, config.decontaminate_ngram)
    return steps


def alpha_fraction(document: Document) -> float:
    """The share of letters among the characters that are not white space."""
    letters = visible = 0
    for piece in document.pieces():
        letters += sum(map(str.isalpha, piece))
        visible += len(piece) - sum(map(str.isspace, piece))
    return letters / visible if visible else 0.0


def line_repeat_fraction(document: Document) -> float:
    """The share of lines, blank ones aside, that repeat an earlier line; memory grows with the lines of a document."""
    seen: set[bytes] = set()
    num_lines = 0
    for line in _lines(document.pieces()):
        stripped = line.strip()
        if stripped:
            num_lines += 1
            seen.add(blake2b(stripped.encode(), digest_size=8).digest())
    return (num_lines - len(seen)) / num_lines if num_lines else 0.0


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """The lines of a text whose pieces may end within one."""
    unfinished: list[str] = []
    for piece in pieces:
        *finished, rest = piece.split("\n")
        for line in finished:
            yield "".join([*unfinished, line])
            unfinished = []
        unfinished.append(rest)
    yield "".join(unfinished)


class ExactDuplicates:
    """Drops a document whose whole text was seen before; keeps 16 bytes of hash (about 80 of memory) for each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, document: Document) -> bool:
        digest = document.digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


class Contaminated:
    """Drops a document that shares an n-gram of words with any text of the evaluation files.

    Texts of fewer than n words cannot be found.
    """

    def __init__(self, paths: Sequence[str], n: int) -> None:
        self._n, self._words = n, WordHashes()
        found: list[Hashes] = []
        for path in paths:
            for text in iter_texts(path):
                found += ngram_hashes(cut_pieces([text], PIECE_CHARS), n, self._words)
        if not found:
            raise ValueError(f"data.clean.decontaminate={list(paths)}: no text in them is {n} words long")
        self._evaluated = set(np.concatenate(found).tolist())

    def __call__(self, document: Document) -> bool:
        return any(
            not self._evaluated.isdisjoint(hashes.tolist())
            for hashes in ngram_hashes(document.pieces(), self._n, self._words)
        )
