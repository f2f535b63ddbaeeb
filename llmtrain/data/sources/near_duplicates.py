"""Near duplicates: documents whose sets of word n-grams are similar, found by MinHash in bounded memory.

A document's signature is the least hash of its shingles under each of 128 permutations; the share of equal entries of
two signatures estimates the Jaccard similarity of the sets, with a standard error of at most 0.045 (Broder 1997). Only
documents that share a band of a signature are compared (locality-sensitive hashing; Leskovec et al., chapter 3).
Signatures and bands are in a temporary SQLite file, so memory does not grow with the number of documents.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmtrain.data.sources.ngrams import WordHashes, ngram_hashes
from llmtrain.data.sources.text import Document
from llmtrain.system.files import cache_root, disk_full

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5
"""Words of a shingle, of which documents are compared as sets (GPT-3, appendix A, and most since use 5)."""
BAND_RECALL = 0.95
"""Share of the pairs at the threshold that are to have a band in common; of more similar pairs, more have."""
FETCHED = 64
"""Documents that are compared at once."""
CACHE_BYTES = 64 << 20
"""Memory of the index; the rest of it is on the disk, and in memory only as the system's cache of files."""

Signature = np.ndarray[Any, np.dtype[np.uint32]]


class NearDuplicates:
    """Drops a document whose shingles' estimated Jaccard similarity to an earlier one reaches a threshold.

    At most 0.3 GB of memory whatever their number, and 0.9 GB of disk, in the cache folder, per million documents kept
    at a threshold of 0.8.
    """

    def __init__(self, threshold: float, cache_dir: str | None = None) -> None:
        try:
            from rensa import RMinHash
        except ImportError:
            raise ValueError("data.clean.near_dedup needs rensa: pip install 'llmtrain[clean]'") from None
        self._digests = RMinHash.digest_matrix_from_flat_token_hashes
        self._threshold = threshold
        self._rows = band_rows(threshold)
        self._words = WordHashes()
        self._place = cache_root(cache_dir)
        self._index = _index(self._place)
        marks = ", ".join("?" * (NUM_PERMUTATIONS // self._rows))
        same_band = f"SELECT document FROM bands WHERE hash IN ({marks})"
        self._similar = f"SELECT number, signature FROM documents WHERE number IN ({same_band})"

    def __call__(self, document: Document) -> bool:
        return self.earlier(document) is not None

    def earlier(self, document: Document) -> int | None:
        """The number, from 0, of a document entered before that is similar; None: there is none, and it is entered.

        A document too short to have shingles is neither compared nor entered: `exact_dedup` is for those.
        """
        signature = self.signature(document)
        if signature is None:
            return None
        for number, _ in self.similar(signature):
            return number
        self.enter(signature)
        return None

    def similar(self, signature: Signature) -> Iterator[tuple[int, float]]:
        """The documents entered before whose estimated similarity reaches the threshold, and the estimate."""
        with self._full_disk():
            candidates = self._index.execute(self._similar, self._bands(signature))
            while found := candidates.fetchmany(FETCHED):
                signatures = np.frombuffer(b"".join(each for _, each in found), dtype=np.uint32)
                shares = (signatures.reshape(len(found), NUM_PERMUTATIONS) == signature).mean(axis=1)
                for place in np.flatnonzero(shares >= self._threshold).tolist():
                    yield int(found[place][0]) - 1, float(shares[place])

    def enter(self, signature: Signature) -> None:
        """Enter a document, whose number is how many were entered before."""
        with self._full_disk():
            number = self._index.execute(
                "INSERT INTO documents (signature) VALUES (?)", [signature.tobytes()]
            ).lastrowid
            bands = [(band, number) for band in self._bands(signature)]
            self._index.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", bands)

    def signature(self, document: Document) -> Signature | None:
        """The signature of all shingles; None if the document has none."""
        least: Signature | None = None
        for shingles in ngram_hashes(document.pieces(), SHINGLE_WORDS, self._words):
            (row,) = self._digests(shingles, [0, len(shingles)], NUM_PERMUTATIONS, 1).to_rows()
            found = np.array(row, dtype=np.uint32)
            least = found if least is None else np.minimum(least, found)
        return least

    def _bands(self, signature: Signature) -> list[int]:
        """A signed 64-bit hash of each band and its place."""
        size = 4 * self._rows
        data = signature.tobytes()
        starts = range(0, len(data) - size + 1, size)
        return [xxhash.xxh3_64_intdigest(data[start : start + size], seed=start) - 2**63 for start in starts]

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise disk_full(self._place) from None


def band_rows(threshold: float) -> int:
    """The most rows of a band with which pairs at the threshold share one with a chance of `BAND_RECALL`, or 1."""
    rows = range(1, NUM_PERMUTATIONS + 1)
    enough = (n for n in rows if 1 - (1 - threshold**n) ** (NUM_PERMUTATIONS // n) >= BAND_RECALL)
    return max(enough, default=1)


def _index(place: Path) -> sqlite3.Connection:
    """An empty index in a file without a name, which the system deletes with the process. Raises ValueError."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix="near-duplicates-", dir=place)
        os.close(descriptor)
    except OSError as error:
        raise ValueError(f"{place}: cannot be written ({error.strerror}); set data.cache_dir to another") from None
    index = sqlite3.connect(path, isolation_level=None)
    for setting in (
        "journal_mode=OFF",
        "synchronous=OFF",
        "locking_mode=EXCLUSIVE",
        f"cache_size=-{CACHE_BYTES >> 10}",
    ):
        index.execute(f"PRAGMA {setting}")
    index.execute("CREATE TABLE documents (number INTEGER PRIMARY KEY, signature BLOB)")
    index.execute("CREATE TABLE bands (hash INTEGER, document INTEGER, PRIMARY KEY (hash, document)) WITHOUT ROWID")
    index.execute("BEGIN")  # one transaction, never committed: nothing has to outlive the process
    os.unlink(path)
    return index
