"""The account of data preparation closes, and says so where it does not."""

from __future__ import annotations

import json

import pytest

from llmtrain.data.ledger import Ledger, SourceLedger, TokenTally, text_summary


def a_closed_account() -> SourceLedger:
    ledger = SourceLedger(path="books", files=2, text_field="text")
    for num_bytes in (10, 20, 0):
        ledger.read.add(num_bytes)
    ledger.kept["train"].add(10)
    ledger.kept["eval"].add(20)
    ledger.drop("empty", 0)
    ledger.bad_row("malformed JSON", 7)
    ledger.tokens["train"] = TokenTally(tokens=6, text_tokens=4, added_tokens=2, unpredicted_tokens=1)
    return ledger


def test_an_account_in_which_all_is_kept_dropped_or_bad_closes():
    ledger = a_closed_account()
    ledger.check()
    assert (ledger.read.documents, ledger.read.bytes) == (4, 37)


def test_a_lost_document_is_noticed():
    ledger = a_closed_account()
    ledger.read.add(0)
    with pytest.raises(AssertionError, match="5 documents read, but 4 kept, dropped or bad"):
        ledger.check()


def test_a_lost_byte_is_noticed():
    ledger = a_closed_account()
    ledger.kept["train"].bytes -= 1
    with pytest.raises(AssertionError, match="37 bytes read, but 36"):
        ledger.check()


def test_a_token_from_nowhere_is_noticed():
    ledger = a_closed_account()
    ledger.tokens["train"].tokens += 1
    with pytest.raises(AssertionError, match="7 train tokens stored"):
        ledger.check()


def test_an_account_survives_json():
    ledger = a_closed_account()
    assert SourceLedger.from_dict(json.loads(json.dumps(ledger.to_dict()))) == ledger


def test_what_is_kept_of_a_held_out_source_is_not_called_training_data():
    ledger = SourceLedger(path="held_out")
    ledger.kept["train"].add(10)  # all of such a source is one split of its store
    ledger.tokens["train"] = TokenTally(tokens=3, text_tokens=3)
    assert text_summary(ledger) == "1 train document, 3 tokens"
    assert text_summary(ledger.held_out()) == "1 eval document, 3 tokens"
    split = a_closed_account()  # a store that holds documents out itself: the others are training data
    assert split.held_out() == split


def test_a_runs_ledger_holds_every_source_and_checks_each():
    broken = a_closed_account()
    broken.read.add(1)
    ledger = Ledger(train=[a_closed_account()], eval=[broken])
    assert [source["path"] for source in ledger.to_dict()["train"]] == ["books"]
    with pytest.raises(AssertionError):
        ledger.check()
