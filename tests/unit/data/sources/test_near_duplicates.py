"""Near duplicates: found as often as their exact similarity says, in memory that does not grow with the documents."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.config.data import CleanConfig, Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.clean import Cleaner
from llmtrain.data.sources.text import Document

VOCABULARY = [f"word{i}" for i in range(300)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(texts: Iterator[str] | list[str], threshold: float = 0.8) -> Iterator[str]:
    cleaner = Cleaner(CleanConfig(near_dedup=threshold), [Source(path="test")], "error")
    documents = (Document(text, "test", len(text)) for text in texts)
    return (str(each.text) for each in cleaner.clean(0, documents, SourceLedger(path="test")))


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def similar_pair(seed: int, num_changed: int) -> tuple[str, str, float]:
    """Two texts of 200 words, some of which differ, and the exact Jaccard similarity of their shingles."""
    rng = random.Random(seed)
    words = rng.choices(VOCABULARY, k=200)
    other = list(words)
    for place in rng.sample(range(200), num_changed):
        other[place] = "changed"
    one, two = shingles(" ".join(words)), shingles(" ".join(other))
    return " ".join(words), " ".join(other), len(one & two) / len(one | two)


@pytest.mark.parametrize(
    ("num_changed", "low", "high", "least", "most"),
    [(2, 0.85, 0.97, 0.95, 1.0), (3, 0.82, 0.92, 0.85, 1.0), (9, 0.3, 0.7, 0.0, 0.02), (40, 0.0, 0.3, 0.0, 0.0)],
)
def test_pairs_are_found_as_their_exact_similarity_says(
    num_changed: int, low: float, high: float, least: float, most: float
):
    pairs = [similar_pair(seed, num_changed) for seed in range(150)]
    pairs = [(one, two) for one, two, similarity in pairs if low <= similarity <= high]
    assert len(pairs) > 100
    remaining = sum(1 for _ in kept([text for pair in pairs for text in pair]))
    assert least <= 2 - remaining / len(pairs) <= most


def test_memory_does_not_grow_with_the_documents():
    def texts() -> Iterator[str]:
        rng = random.Random(0)
        while True:
            yield " ".join(rng.choices(VOCABULARY, k=30))

    documents = kept(texts())
    for _ in range(100):
        next(documents)
    tracemalloc.start()
    try:
        for _ in range(2000):
            next(documents)
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 1 << 20  # signatures alone would take as much


def test_the_index_is_in_the_cache_folder_and_leaves_nothing_there(cache: Path):
    documents = kept([" ".join(VOCABULARY[:20])] * 3)
    assert len(list(documents)) == 1
    assert list(cache.iterdir()) == []


def test_a_text_of_many_pieces_is_compared_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmtrain.data.sources.text.PIECE_CHARS", 40)
    text = " ".join(VOCABULARY)
    assert list(kept([text, text.upper(), " ".join(VOCABULARY[:150])])) == [text, " ".join(VOCABULARY[:150])]


def test_a_full_disk_is_one_clear_line():
    near_duplicates = pytest.importorskip("llmtrain.data.sources.near_duplicates")
    drops = near_duplicates.NearDuplicates(0.8)
    drops._index.execute("PRAGMA max_page_count=8")
    texts = [similar_pair(seed, 0)[0] for seed in range(200)]
    with pytest.raises(ValueError, match="the disk is full; free some space"):
        list(map(drops, [Document(text, "test", len(text)) for text in texts]))
