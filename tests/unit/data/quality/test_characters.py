"""Text that was decoded wrongly is found and repaired; text in other languages is left alone."""

from __future__ import annotations

import pytest
from planted_texts import ACCENTED, item

from llmtrain.data.quality.characters import MOJIBAKE, characters

pytest.importorskip("ftfy", reason="odd characters need ftfy: pip install 'llmtrain[data]'")


def broken(encoding: str) -> list[str]:
    """The sentences in UTF-8, read as another encoding; those that it cannot hold are left out."""
    found = []
    for text in ACCENTED:
        try:
            found.append(text.encode().decode(encoding))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_planted_mojibake_is_found_and_repaired(encoding: str) -> None:
    texts = broken(encoding)
    assert len(texts) >= 7
    found = characters([item(f"A first line.\n{text}\nA last one.", i) for i, text in enumerate(texts)], 1)
    assert found.counts[MOJIBAKE] >= 0.95 * len(texts)
    for repair in found.repairs:
        before = repair.item.text[repair.span.start : repair.span.end]
        assert before in texts[int(repair.item.where.rpartition(":")[2])]
        assert any(repair.after in text for text in ACCENTED), repair.after


def test_sentences_as_they_should_be_are_left_alone() -> None:
    foreign = (
        "今日はいい天気ですね。",
        "Это просто предложение.",
        "שלום עולם",
        "مرحبا بالعالم",
        "สวัสดีครับ",
        "x → y ≤ ∑ 😀",
    )
    found = characters([item(text, i) for i, text in enumerate((*ACCENTED, *foreign))], 1)
    assert found.counts == {} and found.num_odd == 0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("lost \ufffd here", "lost characters (U+FFFD)"),
        ("a bell \x07 rings", "control characters"),
        ("zero\u200bwidth", "invisible characters"),
        ("\uf0b7 a bullet", "private characters"),
        ("salt &amp; pepper", "HTML entities"),
        ("one<br>two", "HTML tags"),
        (r"caf\u00e9", "escapes written out"),
        ("one\r\ntwo", "carriage returns"),
        ("cafe\u0301", "uncomposed letters"),
    ],
)
def test_each_kind_is_found_where_it_is(text: str, kind: str) -> None:
    found = characters([item("nothing here, a < b & c", 0), item(text, 1)], 1)
    assert found.counts == {kind: 1} and found.num_odd == 1
    (odd,) = found.examples[kind]
    assert odd.item.where == "rows.jsonl:1" and text[odd.span.start : odd.span.end]
