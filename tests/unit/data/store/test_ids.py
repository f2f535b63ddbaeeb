"""Rows of ids in pretraining: stored as they are, bound to their tokenizer, refused by name where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import byte_level_bpe

from llmtrain.config.data import DataConfig
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.build import Stores
from llmtrain.data.store.text import build_text_stores

TOKENIZER = byte_level_bpe()


def built(folder: Path, rows: list[Any], said: list[str] | None = None, **options: Any) -> Stores:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": [{"path": str(path)}], "eval_fraction": 0.0, "cache_dir": str(folder / "cache")} | options
    report = [].append if said is None else said.append
    return build_text_stores(DataConfig.model_validate(given), TOKENIZER, report=report)


@pytest.mark.parametrize(
    "extra",
    [{}, {"labels": [5, 6, 7, 8]}, {"loss_mask": [1, 1, 1, 1]}, {"attention_mask": [1, 1, 1, 1]}, {"id": "x"}],
)
def test_ids_are_stored_as_they_are(tmp_path: Path, extra: dict[str, Any]) -> None:
    said: list[str] = []
    (store,) = built(tmp_path, [{"input_ids": [5, 6, 7, 8], **extra}, {"input_ids": [9, 10]}], said).train
    assert store.tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert store.document_offsets.tolist() == [0, 4, 6]
    text = TOKENIZER.decode([5, 6, 7, 8])
    assert store.document_bytes.tolist() == [len(text.encode()), len(TOKENIZER.decode([9, 10]).encode())]
    pack = StreamPacking(store, 8, isolate_documents=True).pack(0)
    assert pack.labels.tolist() == [6, 7, 8, -100, 10, -100]
    assert any("tokenized rows (field input_ids), ids of " in line for line in said)


def test_padding_is_left_out(tmp_path: Path) -> None:
    (store,) = built(tmp_path, [{"input_ids": [0, 5, 6, 0], "attention_mask": [0, 1, 1, 0]}]).train
    assert store.tokens.tolist() == [5, 6]


def test_a_share_is_held_out_by_content(tmp_path: Path) -> None:
    stores = built(tmp_path, [{"input_ids": [5 + i % 40, 6 + i // 40]} for i in range(200)], eval_fraction=0.2)
    held_out, trained = stores.eval[0].num_documents, stores.train[0].num_documents
    assert held_out + trained == 200 and 20 < held_out < 60


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"input_ids": [5, 1 << 20]}, {}, r"rows\.jsonl:2: the id 1048576 is none of the \d+ of the tokenizer"),
        ({"input_ids": [5, 6], "labels": [-100, 6]}, {}, r"rows\.jsonl:2: its labels or mask leave tokens out"),
        ({"input_ids": "5 6"}, {}, r"rows\.jsonl:2: 'input_ids' holds str, not a list"),
        ({"input_ids": [5, 6]}, {"clean": {"min_chars": 3}}, r"data\.clean reads text, and a source holds ids"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        built(tmp_path, [{"input_ids": [5, 6]}, row], **options)


def test_a_source_whose_store_of_text_is_finished_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, options = [{"text": "a"}, {"text": "b"}], {"slice": "50%:100%"}
    source = {"train": [{"path": str(tmp_path / "rows.jsonl"), **options}]}
    (first,) = built(tmp_path, rows, **source).train

    def refuse(*read: object) -> None:
        pytest.fail("the source is read")

    monkeypatch.setattr("llmtrain.data.sources.items.read_rows", refuse)
    monkeypatch.setattr("llmtrain.data.sources.items.count_rows", refuse)
    (again,) = built(tmp_path, rows, **source).train
    assert again.path == first.path and again.tokens.tolist() == first.tokens.tolist()


def test_a_row_with_text_is_read_as_text(tmp_path: Path) -> None:
    (store,) = built(tmp_path, [{"input_ids": [5, 6, 7, 8, 9], "text": "a"}]).train
    assert store.tokens.tolist() != [5, 6, 7, 8, 9]
