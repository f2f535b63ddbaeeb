"""Instruction rows in a store: what is kept of long rows, the account, stores that are shared or rebuilt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chat import write_model, write_rows
from transformers import AutoTokenizer

from llmtrain.config.data import ChatDataConfig
from llmtrain.data.chat.encode import ChatEncoder, Encoded
from llmtrain.data.store.build import Stores
from llmtrain.data.store.fitting import fit
from llmtrain.data.store.kinds import NOTHING_LEFT, TOO_LONG, build_chat_stores


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    model = write_model(tmp_path_factory.mktemp("model"))
    return ChatEncoder(AutoTokenizer.from_pretrained(model), plain=False, loss_on="assistant")


def built(encoder: ChatEncoder, folder: Path, rows: list[dict[str, Any]] | Path, **settings: Any) -> Stores:
    source = rows
    if isinstance(rows, list):
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": str(source), "eval_fraction": 0.0, "cache_dir": str(folder / "cache")} | settings
    return build_chat_stores(ChatDataConfig.model_validate(given), encoder, report=lambda line: None)


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def document(trained: list[int], length: int) -> Encoded:
    return Encoded(np.arange(length, dtype=np.uint16), np.isin(np.arange(length), trained))


@pytest.mark.parametrize(
    ("on_long_row", "trained", "lengths"),
    [
        ("truncate", [2, 9], [4]),
        ("truncate", [9], []),
        ("drop", [2, 9], []),
        ("split", [2, 9], [4, 2]),
        ("split", [2, 8], [4]),
        ("split", [5, 9], [4, 2]),
    ],
)
def test_a_long_document_is_cut_as_configured(on_long_row: str, trained: list[int], lengths: list[int]) -> None:
    pieces = fit(document(trained, 10), 4, on_long_row)
    assert [len(piece.input_ids) for piece in pieces] == lengths
    assert all(piece.trained.any() and not piece.trained[0] for piece in pieces)


def test_a_short_document_stays_as_it_is() -> None:
    whole = document([3], 4)
    assert fit(whole, 4, "drop") == [whole]


def test_targets_are_the_answer_and_its_end(encoder: ChatEncoder, tmp_path: Path) -> None:
    (store,) = built(encoder, tmp_path, [row("ab", "cd")]).train
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "model"))
    assert store.trained is not None
    assert tokenizer.decode(store.tokens[np.flatnonzero(store.trained)]) == "cd<|im_end|>"


@pytest.mark.parametrize(("on_long_row", "reason"), [("drop", TOO_LONG), ("truncate", NOTHING_LEFT)])
def test_rows_of_which_nothing_is_left_are_counted(
    encoder: ChatEncoder, tmp_path: Path, on_long_row: str, reason: str
) -> None:
    rows = [row("ab", "cd"), row("a" * 100, "cd")]
    (ledger,) = built(encoder, tmp_path, rows, max_seq_len=40, on_long_row=on_long_row).ledger.train
    assert {name: tally.documents for name, tally in ledger.dropped.items()} == {reason: 1}
    assert ledger.kept["train"].documents == 1
    assert ledger.tokens["train"].dropped_tokens > 100


@pytest.mark.parametrize("on_long_row", ["truncate", "split"])
def test_every_token_is_kept_or_counted_as_cut(encoder: ChatEncoder, tmp_path: Path, on_long_row: str) -> None:
    rows = [row("ab", "c" * 90), row("h", "gg")]
    (whole,) = built(encoder, tmp_path, rows).ledger.train
    (cut,) = built(encoder, tmp_path, rows, max_seq_len=40, on_long_row=on_long_row).ledger.train
    tally = cut.tokens["train"]
    assert tally.tokens + tally.truncated_tokens == whole.tokens["train"].tokens
    assert tally.rows_split == (on_long_row == "split")
    assert tally.trained_tokens + tally.masked_tokens == tally.tokens


def test_a_bad_row_stops_the_build_or_is_counted(encoder: ChatEncoder, tmp_path: Path) -> None:
    rows = [row("ab", "cd"), {"messages": [{"role": "judge", "content": "x"}]}]
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: .*judge.*on_bad_row=skip"):
        built(encoder, tmp_path, rows)
    assert not list((tmp_path / "cache").glob("*/store.json"))
    (ledger,) = built(encoder, tmp_path, rows, on_bad_row="skip").ledger.train
    assert sum(tally.documents for tally in ledger.bad_rows.values()) == 1
    assert ledger.kept["train"].documents == 1


def test_a_store_is_shared_until_what_decides_it_changes(encoder: ChatEncoder, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=30)
    names = [
        built(encoder, tmp_path, rows, **settings).names
        for settings in ({}, {}, {"max_seq_len": 64}, {"on_long_row": "drop"}, {"eval_fraction": 0.2})
    ]
    assert names[0] == names[1]
    assert len({tuple(name) for name in names}) == 4


def test_a_row_is_held_out_by_its_content(encoder: ChatEncoder, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=60)
    stores = built(encoder, tmp_path, rows, eval_fraction=0.3)
    (ledger,) = stores.ledger.train
    assert 5 < ledger.kept["eval"].documents < 35
    assert stores.eval[0].num_documents == ledger.kept["eval"].documents
