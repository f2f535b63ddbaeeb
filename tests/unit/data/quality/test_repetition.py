"""Repetition within texts, by hand: what each rule counts, and which texts are measured."""

from __future__ import annotations

import random

import pytest
from planted_texts import item, sentence

from llmtrain.data.quality.items import CHOSEN, PROMPT, REJECTED, Part, item_of
from llmtrain.data.quality.repetition import LIMITS, LINES, repetition, repetition_of
from llmtrain.data.sources.ngrams import WordHashes


def words(count: int, start: int = 0) -> str:
    """Distinct words of four letters: w000 w001."""
    return " ".join(f"w{number:03d}" for number in range(start, start + count))


def test_a_text_without_repetition_has_none() -> None:
    assert repetition_of(words(60), WordHashes()) == dict.fromkeys(LIMITS, 0.0)


def test_what_is_there_a_second_time_counts_once_and_the_first_time_not() -> None:
    found = repetition_of(f"{words(60)} {words(10)} {words(30, 100)}", WordHashes())
    assert found["repeated 5-grams"] == found["repeated 10-grams"] == pytest.approx(10 / 100)
    found = repetition_of(f"{words(60)} {words(9)} {words(31, 100)}", WordHashes())
    assert found["repeated 9-grams"] == pytest.approx(9 / 100) and found["repeated 10-grams"] == 0.0


def test_the_most_frequent_words_in_a_row_count_each_time() -> None:
    found = repetition_of(f"w900 w901 {words(46)} w900 w901 {words(48, 100)} w900 w901", WordHashes())
    assert found["top 2-gram"] == pytest.approx(6 / 100) and found["top 3-gram"] == 0.0


def test_overlapping_repetition_covers_no_more_than_all() -> None:
    found = repetition_of("ha " * 80, WordHashes())
    assert found["top 2-gram"] == 1.0 and found["repeated 5-grams"] == pytest.approx(79 / 80)


def test_lines_are_counted() -> None:
    lines = [sentence(random.Random(i), 9) for i in range(6)]
    assert repetition_of("\n".join([*lines, *lines[:2]]), WordHashes())[LINES] == pytest.approx(2 / 8)


def test_planted_loops_are_found_and_random_texts_are_not() -> None:
    draw = random.Random(0)
    good = [item(sentence(draw, 80), i) for i in range(100)]
    loops = [item(f"{sentence(draw, 60)} {' '.join([sentence(draw, 6)] * 6)}", 100 + i) for i in range(30)]
    found = repetition([*good, *loops, item("too short to say", 200)], 1)
    assert (found.num_over, found.num_measured, found.num_short) == (30, 130, 1)
    assert all(int(each.item.where.rpartition(":")[2]) >= 100 and each.count == 6 for each in found.most)


def test_answers_that_quote_their_prompt_do_not_repeat_themselves() -> None:
    text = sentence(random.Random(1), 60)
    pair = item_of([Part(PROMPT, text), Part(CHOSEN, text), Part(REJECTED, "no " * 60)], "rows.jsonl:1")
    assert repetition([pair], 1).num_over == 0
