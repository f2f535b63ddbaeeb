"""The language of a text is that of what it says, not of what all texts begin with."""

from __future__ import annotations

import pytest
from planted_texts import item

from llmtrain.data.quality.languages import SHORT, languages

pytest.importorskip("py3langid", reason="languages need py3langid: pip install 'llmtrain[data]'")

SYSTEM = "A chat between a curious human and an assistant, who gives helpful and polite answers.\n### Human: "
SPANISH = "Hola, ¿puedes decirme cuántos planetas tiene nuestro sistema solar y cómo se llaman?"
GERMAN = "Kannst du mir bitte erklären, warum der Himmel am Abend rot und am Mittag blau ist?"
ENGLISH = "Could you please explain why the sky is red in the evening and blue around noon?"


def named(texts: list[str]) -> list[str]:
    return list(languages([item(text, number) for number, text in enumerate(texts)], 1).of_items)


def test_an_english_beginning_of_all_texts_does_not_make_them_english() -> None:
    expected = ["Spanish", "German", "Spanish", "English"]
    assert named([SYSTEM + text for text in (SPANISH, GERMAN, SPANISH + " Gracias.", ENGLISH)]) == expected
    assert named([SYSTEM + SPANISH, SYSTEM + GERMAN, "Why? " + ENGLISH]) == ["Spanish", "German", "English"]


def test_where_little_is_left_the_beginning_counts() -> None:
    assert named([f"{SYSTEM}{number} + {number}" for number in range(10, 20)]) == ["English"] * 10
    assert named([ENGLISH]) == ["English"]
    assert named([ENGLISH, ENGLISH]) == ["English"] * 2


def test_of_a_short_text_the_language_is_not_asked() -> None:
    assert named(["12 + 12 = 24, 24 + 24", ENGLISH]) == [SHORT, "English"]
