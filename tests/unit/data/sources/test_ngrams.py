"""What counts as a word of an n-gram."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.data.sources.near_duplicates import NearDuplicates
from llmtrain.data.sources.ngrams import WORD, WordHashes, ngram_hashes
from llmtrain.data.sources.text import Document

CHINESE = "我们是中国人民的儿子我们深深地爱着我们的祖国和人民"


def test_each_letter_of_a_script_without_spaces_is_a_word():
    assert WORD.findall("我们 train it 3x, カナ。ไทย naïve_ид 한국어 말") == (
        ["我", "们", "train", "it", "3x", "カ", "ナ", "ไ", "ท", "ย", "naïve_ид", "한국어", "말"]
    )


def test_a_sentence_within_a_chinese_text_shares_its_ngrams():
    def hashes(text: str) -> set[int]:
        return {int(each) for found in ngram_hashes([text], 13, WordHashes()) for each in found}

    assert len(hashes(CHINESE)) == len(CHINESE) - 12
    assert hashes(CHINESE) <= hashes(f"他说{CHINESE}然后走了")


def test_a_chinese_near_duplicate_is_dropped(tmp_path: Path):
    pytest.importorskip("rensa")
    near = NearDuplicates(0.7, str(tmp_path))
    dropped = [near(Document(text, "x", 0)) for text in (CHINESE, CHINESE + "了", CHINESE[::-1])]
    assert dropped == [False, True, False]
