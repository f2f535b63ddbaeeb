"""Personal data is found at a high rate, what only looks like it is left alone, and masks keep a text's length."""

from __future__ import annotations

import random

import pytest
from planted_texts import MADE, harmless, item, luhn_digit, personal

from llmtrain.data.personal import (
    MASK,
    PATTERNS,
    find_personal,
    iban_holds,
    luhn,
    masked,
    masked_part,
)
from llmtrain.data.quality.personal_items import personal_data

NUM_PLANTED = 200
LEAST_RECALL = 0.99
MOST_FALSE_ALARMS = 0.005


@pytest.mark.parametrize("kind", MADE)
def test_what_is_planted_is_found_and_masked(kind: str) -> None:
    draw = random.Random(2)
    planted = [personal(draw, kind) for _ in range(NUM_PLANTED)]
    num_found = 0
    for each in planted:
        spans = [each.text[found.start : found.end] for found in find_personal(each.text) if found.kind == kind]
        num_found += any(each.secret in span for span in spans)
        shown = masked(each.text)
        assert each.secret not in shown and len(shown) == len(each.text)
    assert num_found >= LEAST_RECALL * NUM_PLANTED


def test_what_only_looks_like_it_is_left_alone() -> None:
    draw = random.Random(3)
    texts = [harmless(draw) for _ in range(1000)]
    alarms = [(text, find_personal(text)) for text in texts if find_personal(text)]
    assert len(alarms) <= MOST_FALSE_ALARMS * len(texts), alarms[:5]


@pytest.mark.parametrize("domain", ["example.org", "mail.example.com", "EXAMPLE.net", "host.test", "a.invalid"])
def test_an_address_that_nobody_can_have_is_nobodys(domain: str) -> None:
    assert find_personal(f"write to jane@{domain}, or ftp://jane:secret@{domain}/files") == []
    assert {each.kind for each in find_personal(f"jane@my{domain}.de, ftp://jane:secret@my{domain}.de/files")} == {
        "e-mail addresses",
        "keys and passwords",
    }


def test_every_kind_is_planted() -> None:
    assert {pattern.name for pattern in PATTERNS} == MADE.keys()


def test_check_digits_are_those_of_the_standards() -> None:
    assert luhn("79927398713") and not luhn("79927398710")  # the example of ISO/IEC 7812
    assert luhn_digit("7992739871") == "3"
    assert iban_holds("GB82WEST12345698765432") and not iban_holds("GB82WEST12345698765433")  # that of ISO 13616
    assert not iban_holds("GB82WEST1234569876543")


def test_masks_leave_what_a_person_needs_to_judge() -> None:
    assert masked("to jane.doe@smith.org now") == "to j•••.•••@s••••.••• now"
    assert masked("pay 4111 1111 1111 1111 now") == "pay •••• •••• •••• ••11 now"
    assert masked("it is IBAN GB82 WEST 1234 5698 7654 32 now") == "it is IBAN •••• •••• •••• •••• •••• 32 now"


def test_a_part_is_masked_as_in_the_whole() -> None:
    text = "a" * 400 + " jane.doe@smith.org " + "b" * 400
    for start in range(390, 425):
        part = masked_part(text, start, start + 12)
        assert part == masked(text)[start : start + 12]
    assert MASK in masked_part(text, 404, 410)


def test_finds_are_counted_by_kind_item_and_source() -> None:
    found = personal_data([item("a@b.org and c@d.org", 1), item("nothing", 2), item("call +49 30 1234567", 3)], 1)
    assert found.finds == {"e-mail addresses": 2, "phone numbers": 1}
    assert found.items == {"e-mail addresses": 1, "phone numbers": 1}
    assert found.num_items == 2 and found.by_source == [found.finds]
    assert found.examples["e-mail addresses"][0].text == "a@b.••• and c@d.•••"
