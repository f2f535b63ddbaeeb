"""Planted duplicates and near duplicates are found, and texts that share little are not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from planted_texts import changed, item, sentence

from llmtrain.config.data import Source
from llmtrain.data.quality.duplicates import MOST_ENTERED, NEAR, ONE_WORD_OF, exact_duplicates, jaccard, near_duplicates
from llmtrain.data.quality.items import Item
from llmtrain.data.quality.sample import Reading, Sample, SourceTotals, read_sample
from llmtrain.data.sources.near_duplicates import NearDuplicates, Signature

pytest.importorskip("rensa", reason="near duplicates need rensa: pip install 'llmtrain[clean]'")

NUM_TEXTS, NUM_PLANTED = 300, 60


def sample_of(items: list[Item]) -> Sample:
    import numpy as np

    digests = np.array([each.digest for each in items], dtype=np.uint64)
    sizes = np.array([each.num_bytes for each in items], dtype=np.uint64)
    totals = [SourceTotals("rows.jsonl", "pretrain", True)]
    return Sample(items, range(len(items)), totals, digests, sizes, len(items), 0)


def written(path: Path, texts: list[str]) -> list[Reading]:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [Reading(Source(path=str(path)), "pretrain", True)]


def test_every_exact_duplicate_is_counted_with_its_places(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [sentence(draw, 30) for _ in range(NUM_TEXTS)]
    readings = written(tmp_path / "rows.jsonl", [*texts, texts[5], texts[7], texts[5]])
    found = exact_duplicates(read_sample(readings, 50, 0), readings)  # a sample, which does not matter here
    assert (found.num_items, found.num_repeats, found.num_texts) == (NUM_TEXTS + 3, 3, 2)
    assert found.repeated_bytes == 2 * len(texts[5]) + len(texts[7])
    assert found.most[0].text == texts[5] and found.most[0].count == 3
    assert [place.rpartition(":")[2] for place in found.most[0].places] == ["6", "301", "303"]


def test_planted_near_duplicates_are_found_and_others_are_not() -> None:
    draw = random.Random(1)
    texts = [sentence(draw, 90) for _ in range(NUM_TEXTS)]
    near = [changed(draw, text, 1) for text in texts[:NUM_PLANTED]]
    far = [changed(draw, text, 8) for text in texts[NUM_PLANTED : 2 * NUM_PLANTED]]
    assert min(jaccard(one, other) for one, other in zip(texts, near, strict=False)) > 0.84
    assert max(jaccard(one, other) for one, other in zip(texts[NUM_PLANTED:], far, strict=False)) < 0.6
    items = [item(text, number) for number, text in enumerate([*texts, *near, *far])]
    found = near_duplicates(sample_of(items), 0.8)
    assert 0.95 * NUM_PLANTED <= found.num_similar <= NUM_PLANTED
    for pair in found.most:
        first, second = (int(each.where.rpartition(":")[2]) for each in (pair.earlier, pair.later))
        assert second == first + NUM_TEXTS and pair.similarity > 0.84


def test_none_that_is_counted_is_less_similar_than_the_limit() -> None:
    draw = random.Random(2)
    texts = [sentence(draw, 80) for _ in range(200)]
    near = [changed(draw, text, 2) for text in texts]
    assert 0.75 < max(jaccard(one, other) for one, other in zip(texts, near, strict=True)) < 0.8
    items = [item(text, number) for number, text in enumerate([*texts, *near])]
    assert near_duplicates(sample_of(items), 0.8).num_similar == 0
    assert near_duplicates(sample_of(items), 0.7).num_similar > 150


def test_a_text_is_compared_with_all_that_may_be_like_it() -> None:
    """B is like A below the limit, C is like B above it: what MinHash finds first for C, or for B, may be A."""
    draw = random.Random(3)
    first = [sentence(draw, 90) for _ in range(NUM_PLANTED)]
    second = [changed(draw, text, 2) for text in first]
    third = [f"{text} {sentence(draw, 6)}" for text in second]
    similarities = [(jaccard(a, b), jaccard(a, c), jaccard(b, c)) for a, b, c in zip(first, second, third, strict=True)]
    assert all(a_b < 0.8 and a_c < 0.8 < b_c for a_b, a_c, b_c in similarities)
    items = [item(text, number) for number, text in enumerate([*first, *second, *third])]
    found = near_duplicates(sample_of(items), 0.8)
    assert found.num_similar == NUM_PLANTED and found.usual == 0
    pairs = [[int(each.where.rpartition(":")[2]) for each in (pair.earlier, pair.later)] for pair in found.most]
    assert all(2 * NUM_PLANTED <= later == earlier + NUM_PLANTED for earlier, later in pairs)


def test_copies_of_a_template_are_counted_and_each_is_compared_with_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(4)
    head = sentence(draw, 90)
    items = [item(f"{head} {number} {draw.choice(head.split())}", number) for number in range(NUM_TEXTS)]
    num_candidates: list[int] = []
    similar = NearDuplicates.similar

    def counted(self: NearDuplicates, signature: Signature) -> list[tuple[int, float]]:
        found = list(similar(self, signature))
        num_candidates.append(len(found))
        return found

    monkeypatch.setattr(NearDuplicates, "similar", counted)
    found = near_duplicates(sample_of(items), 0.8)
    assert found.num_similar == found.num_like_one == NUM_TEXTS - 1 and found.usual > 0.9
    assert len(num_candidates) == NUM_TEXTS and max(num_candidates) <= MOST_ENTERED


def test_copies_of_all_texts_make_no_template_of_them() -> None:
    draw = random.Random(5)
    texts = [sentence(draw, 90) for _ in range(NUM_PLANTED)]
    for copies in ([changed(draw, text, 1) for text in texts], [*texts[1:], changed(draw, texts[0], 1)]):
        items = [item(text, number) for number, text in enumerate([*texts, *copies])]
        found = near_duplicates(sample_of(items), 0.8)
        assert found.num_similar and found.usual == 0


def test_equal_and_short_texts_are_not_near_duplicates() -> None:
    text = sentence(random.Random(2), 30)
    found = near_duplicates(sample_of([item(text, 1), item(text, 2), item("too short", 3)]), 0.8)
    assert (found.num_similar, found.num_short) == (0, 1)


def test_similarity_is_the_shared_part_of_five_words_in_a_row() -> None:
    assert jaccard("a b c d e f", "a b c d e g") == pytest.approx(1 / 3)
    assert jaccard("A, b c d; e!", "a b c d e") == 1.0
    words = [f"word{number}" for number in range(ONE_WORD_OF)]
    assert jaccard(" ".join(words), " ".join([*words[:24], "other", *words[25:]])) == NEAR
