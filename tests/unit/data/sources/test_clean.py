"""Cleaning: each step drops what it names, counts it, and finds duplicates across sources."""

from __future__ import annotations

import json
import sys
from hashlib import blake2b
from pathlib import Path

import pytest

from llmtrain.config.data import CleanConfig, Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.clean import Cleaner, alpha_fraction, line_repeat_fraction
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.sources.ngrams import WordHashes, ngram_hashes
from llmtrain.data.sources.text import Document

LONG = [f"word{i}" for i in range(60)]


def document(text: str) -> Document:
    return Document(text, "test", len(text.encode()))


def clean(texts: list[str], **options: object) -> tuple[list[str], dict[str, int]]:
    """What is kept, and the documents dropped by each step."""
    ledger = SourceLedger(path="test")
    cleaner = Cleaner(CleanConfig(**options), [Source(path="test")], "error")
    kept = [str(each.text) for each in cleaner.clean(0, map(document, texts), ledger)]
    return kept, {step: tally.documents for step, tally in ledger.dropped.items()}


def test_nothing_is_dropped_by_default():
    assert clean(["a", "a", ""]) == (["a", "a", ""], {})


def test_length_filters_keep_their_bounds():
    kept, dropped = clean(["ab", "abc", "abcdef", "abcdefg"], min_chars=3, max_chars=6)
    assert kept == ["abc", "abcdef"]
    assert dropped == {"min_chars": 1, "max_chars": 1}


def test_the_share_of_letters_leaves_out_white_space():
    assert alpha_fraction(document("ab\n 12 \t")) == 0.5
    assert clean(["letters", "1234x"], min_alpha_fraction=0.5) == (["letters"], {"min_alpha_fraction": 1})


def test_the_share_of_repeated_lines_leaves_out_blank_ones():
    assert line_repeat_fraction(document("a\n\na\n\nb\n a")) == 0.5
    assert line_repeat_fraction(document("\n\n")) == 0
    kept, dropped = clean(["x\nx\nx\ny", "x\ny\nz"], max_line_repeat_fraction=0.3)
    assert (kept, dropped) == (["x\ny\nz"], {"max_line_repeat_fraction": 1})


def test_the_share_of_repeated_lines_does_not_depend_on_where_pieces_are_cut(monkeypatch):
    text = "one line of words\nanother line of words\n" * 50
    whole = line_repeat_fraction(document(text))
    monkeypatch.setattr("llmtrain.data.sources.text.PIECE_CHARS", 30)
    assert len(list(document(text).pieces())) > 10
    assert line_repeat_fraction(document(text)) == whole == 98 / 100


def test_of_equal_documents_the_first_is_kept():
    assert clean(["a", "b", "a", "a "], exact_dedup=True) == (["a", "b", "a "], {"exact_dedup": 1})


def test_near_duplicates_are_dropped_and_the_merely_similar_are_kept():
    nearly = " ".join([*LONG[:-1], "other"])
    half = " ".join([*LONG[:30], *(f"new{i}" for i in range(30))])
    kept, dropped = clean([" ".join(LONG), nearly, half, " ".join(LONG).upper()], near_dedup=0.7)
    assert kept == [" ".join(LONG), half]
    assert dropped == {"near_dedup": 2}


def test_texts_too_short_for_a_shingle_are_no_near_duplicates():
    assert clean(["one two", "one two"], near_dedup=0.5)[1] == {}


def test_near_dedup_without_its_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ValueError, match=r"pip install 'llmtrain\[clean\]'"):
        clean(["a"], near_dedup=0.8)


def test_a_document_that_shares_an_ngram_with_an_evaluation_file_is_dropped(tmp_path: Path):
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"question": "What is the capital of France, then?", "answer": "Paris."}))
    texts = ["He asked: what is -- THE CAPITAL of france; nobody knew.", "What is the capital of Spain?"]
    kept, dropped = clean(texts, decontaminate=[str(path)], decontaminate_ngram=6)
    assert (kept, dropped) == (texts[1:], {"decontaminate": 1})


def test_evaluation_files_too_short_to_be_found_are_an_error(tmp_path: Path):
    (tmp_path / "eval.txt").write_text("only three words")
    with pytest.raises(ValueError, match="no text in them is 13 words long"):
        clean(["a"], decontaminate=[str(tmp_path / "eval.txt")])


def test_ngrams_do_not_depend_on_where_pieces_are_cut():
    def hashes(pieces: list[str]) -> list[int]:
        return [value for part in ngram_hashes(pieces, 4, WordHashes()) for value in part.tolist()]

    assert hashes([" ".join(LONG)]) == hashes([" ".join(LONG[i : i + 2]) + " " for i in range(0, 60, 2)])
    assert len(set(hashes([" ".join(LONG)]))) == 57


def test_an_ngrams_hash_is_the_polynomial_of_its_words_hashes():
    the, fox = (int.from_bytes(blake2b(word, digest_size=8).digest(), "little") for word in (b"the", b"fox"))
    (found,) = ngram_hashes(["The -- fox!"], 2, WordHashes())
    assert found.tolist() == [(the * 0x9E3779B97F4A7C15 + fox) % 2**64]


def test_duplicates_are_found_in_sources_before_even_where_those_were_not_cleaned_here(tmp_path: Path):
    for name, texts in (("a", ["x", "y"]), ("b", ["y", "z"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = [Source(path=str(tmp_path / "a.jsonl")), Source(path=str(tmp_path / "b.jsonl"))]

    def kept(cleaner: Cleaner, index: int) -> list[str]:
        ledger = SourceLedger(path="test")
        return [
            str(each.text) for each in cleaner.clean(index, iter_documents(sources[index], "error", ledger), ledger)
        ]

    in_turn = Cleaner(CleanConfig(exact_dedup=True), sources, "error")
    assert [kept(in_turn, 0), kept(in_turn, 1)] == [["x", "y"], ["z"]]
    second_only = Cleaner(CleanConfig(exact_dedup=True), sources, "error")
    assert kept(second_only, 1) == ["z"]
