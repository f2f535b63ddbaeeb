"""Rows that are tokenized already, in tuning: which ids are stored, which of them are trained, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from instruction_rows import fault, read_source, write
from tiny_chat import write_model
from transformers import AutoTokenizer

from llmtrain.config.data import ChatDataConfig, Source
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.store.build import Stores
from llmtrain.data.store.kinds import build_chat_stores
from llmtrain.data.survey import survey


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    model = write_model(tmp_path_factory.mktemp("model"))
    return ChatEncoder(AutoTokenizer.from_pretrained(model), plain=False, loss_on="assistant")


def built(encoder: ChatEncoder, folder: Path, rows: list[Any], said: list[str]) -> Stores:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ChatDataConfig(train=[{"path": str(path)}], eval_fraction=0.0, cache_dir=str(folder / "cache"))
    return build_chat_stores(data, encoder, report=said.append)


@pytest.mark.parametrize(
    ("row", "ids", "trained"),
    [
        ({"input_ids": [5, 6, 7, 2], "labels": [-100, -100, 7, 2]}, [5, 6, 7, 2], [0, 0, 1, 1]),
        ({"input_ids": [5, 6, 7, 2], "loss_mask": [0, 0, 1, 1]}, [5, 6, 7, 2], [0, 0, 1, 1]),
        ({"input_ids": [5, 6, 7, 2], "completion_mask": [False, True, False, True]}, [5, 6, 7, 2], [0, 1, 0, 1]),
        ({"input_ids": [5, 6, 7, 2], "assistant_masks": [1, 1, 0, 0]}, [5, 6, 7, 2], [0, 1, 0, 0]),
        ({"input_ids": [5, 6, 7, 2]}, [5, 6, 7, 2], [0, 1, 1, 1]),
        (
            {"input_ids": [9, 5, 6, 7, 9], "attention_mask": [0, 1, 1, 1, 0], "labels": [-100, -100, 6, 7, -100]},
            [5, 6, 7],
            [0, 1, 1],
        ),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "prompt": None}, [5, 6, 7], [0, 1, 1]),
        ({"input_ids": [5, 6, 7], "position_ids": [0, 1, 2], "seq_lengths": [3]}, [5, 6, 7], [0, 1, 1]),
        ({"input_ids": [9, 5, 6], "position_ids": [1, 0, 1], "attention_mask": [0, 1, 1]}, [5, 6], [0, 1]),
        ({"input_ids": [5, 6], "segment_ids": [7, 7], "cu_seqlens": [0, 2]}, [5, 6], [0, 1]),
    ],
)
def test_ids_are_stored_as_they_are(
    encoder: ChatEncoder, tmp_path: Path, row: dict[str, Any], ids: list[int], trained: list[int]
) -> None:
    said: list[str] = []
    (store,) = built(encoder, tmp_path, [row], said).train
    assert store.tokens.tolist() == ids
    assert store.trained is not None and store.trained.tolist() == trained
    assert store.weights is None
    assert any("tokenized rows (fields input_ids" in line for line in said)
    assert f"tokenized rows of {encoder.name}" in said[-1]


def test_a_mask_of_weights_is_kept(encoder: ChatEncoder, tmp_path: Path) -> None:
    row = {"input_ids": [5, 6, 7, 2], "loss_mask": [0, 0.5, 1, 0.25], "weight": 2}
    (store,) = built(encoder, tmp_path, [row], []).train
    assert store.weights is not None and store.weights.tolist() == [0, 1, 2, 0.5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": []}, "'input_ids' is empty"),
        ({"input_ids": [5, -1]}, "'input_ids' holds -1 at place 1, which is no id"),
        ({"input_ids": [5, "6"]}, "'input_ids' holds '6' at place 1"),
        ({"input_ids": [5, 6], "labels": [5]}, "'labels' has 1 elements, 'input_ids' 2"),
        ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, "'labels' holds 6 at place 0, where 'input_ids' holds 5"),
        ({"input_ids": [5, 6], "loss_mask": [0, -1]}, "'loss_mask' holds -1 at place 1"),
        ({"input_ids": [5, 6], "loss_mask": 1}, "'loss_mask' holds int, not a list"),
        ({"input_ids": [5, 6], "labels": [5, 6], "loss_mask": [1, 1]}, "'labels' and 'loss_mask' each say"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "'attention_mask' is 0 between tokens"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 2, 2]}, "'attention_mask' holds 2 at place 1: 1 is a token"),
        ({"input_ids": [5, 6, 7], "position_ids": [0, 1, 0]}, "'position_ids' says that the row is several documents"),
        ({"input_ids": [5, 6, 7], "position_ids": [0, 1]}, "'position_ids' has 2 elements, 'input_ids' 3"),
        ({"input_ids": [5, 6, 7], "segment_ids": [1, 1, 2]}, "'segment_ids' says that the row is several documents"),
        ({"input_ids": [5, 6, 7], "seq_lengths": [2, 1]}, "'seq_lengths' says that the row is several documents"),
        ({"input_ids": [5, 6, 7], "cu_seqlens": [0, 2, 3]}, "'cu_seqlens' says that the row is several documents"),
        ({"input_ids": [5, 6], "text": "a"}, "the row is in 2 formats"),
    ],
)
def test_a_row_of_ids_with_a_fault_is_refused_with_its_place(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    found = fault(tmp_path, row)
    assert found.startswith("rows.jsonl:1: ") and message in found


def test_ids_that_the_tokenizer_does_not_have_name_it(encoder: ChatEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: the id 260 is none of the 260 of the tokenizer .*model"):
        built(encoder, tmp_path, [{"input_ids": [5, 6]}, {"input_ids": [5, 260]}], [])


@pytest.mark.parametrize("mask", [{"labels": [-100, 6]}, {"loss_mask": [0, 1]}])
def test_a_row_without_the_mask_that_others_have_is_refused(tmp_path: Path, mask: dict[str, Any]) -> None:
    for missing in ({}, dict.fromkeys(mask)):
        found = fault(tmp_path, {"input_ids": [5, 6], **mask}, {"input_ids": [5, 6], **missing})
        assert found.startswith("rows.jsonl:2: no labels or mask, as the source's first row has")
    examples, _ = read_source(tmp_path, {"input_ids": [5, 6]}, {"input_ids": [5, 6], **mask})
    assert [example.weights for example in examples] == [None, (0.0, 1.0)]


def test_a_row_that_trains_no_token_is_refused(encoder: ChatEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no token of the row would be trained"):
        built(encoder, tmp_path, [{"input_ids": [5, 6], "labels": [5, -100]}], [])


def test_what_ids_were_made_of_may_be_chosen_by_name(tmp_path: Path) -> None:
    row = {"input_ids": [5, 6], "text": "a"}
    (text,), _ = read_source(tmp_path, row, fields={"text": "text"})
    (ids,), _ = read_source(tmp_path, row, fields={"input_ids": "input_ids"})
    assert text.text == "a" and ids.ids == (5, 6)  # type: ignore[union-attr]


def test_the_survey_of_a_source_of_ids_says_what_it_serves(tmp_path: Path) -> None:
    path = write(tmp_path, {"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]})
    found = survey(Source(path=str(path)), 10)
    assert {use for use in found.fits if found.state(use) == "fits"} == {"pretrain", "sft"}
    assert "tokenized rows (field input_ids); the first has 3 ids" in found.fits["pretrain"].described
