"""The account of data preparation closes, and says so where it does not."""

from __future__ import annotations

import json

import pytest

from llmtrain.data.ledger import Ledger, SourceLedger, TokenTally


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


def test_a_runs_ledger_holds_every_source_and_checks_each():
    broken = a_closed_account()
    broken.read.add(1)
    ledger = Ledger(train=[a_closed_account()], eval=[broken])
    assert [source["path"] for source in ledger.to_dict()["train"]] == ["books"]
    with pytest.raises(AssertionError):
        ledger.check()
