"""Labelled answers in stores and packs: what is kept, and which other answer a prompt is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chat import write_model
from tiny_pairs import write_pairs
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.batch import IGNORE_INDEX
from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.packing.answers import collate_answers, desirable_answers, pack_answers
from llmtrain.data.store.build import Stores
from llmtrain.data.store.kinds import build_answer_stores
from llmtrain.data.store.token_store import TokenStore


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def row(number: int, label: bool | None = True) -> dict[str, Any]:
    return {"prompt": f"question {number}", "completion": "no" * (number + 1), "label": label}


def answer(prompt: str, number: int) -> dict[str, Any]:
    return {"prompt": prompt, "completion": f"answer {number}", "label": number % 2 == 0}


ORDERS = {
    "all chosen, then all rejected": [f"p{i}" for i in range(8)] * 2,  # as TRL's unpair_preference_dataset gives them
    "chosen and rejected in turns": [f"p{i // 2}" for i in range(16)],
    "four answers each, far from each other": [f"p{i % 4}" for i in range(16)],
    "one prompt with half of the answers": ["p0"] * 8 + [f"p{i}" for i in range(1, 9)],
    "one prompt with most of the answers": ["p0"] * 6 + ["p1", "p0", "p2"] + ["p0"] * 4,
    "two prompts": ["p0", "p1", "p1", "p0"],
    "all different": [f"p{i}" for i in range(9)],
}


def stores_of(tokenizer: PreTrainedTokenizerFast, folder: Path, path: Path, **settings: Any) -> Stores:
    given = {"train": str(path), "eval_fraction": 0.0, "max_seq_len": 96, "cache_dir": str(folder / "cache")}
    data = PreferenceDataConfig.model_validate(given | settings)
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="completion")
    return build_answer_stores(data, encoder, report=lambda line: None)


def test_every_answer_is_in_one_pack_with_its_label(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [row(number, label=number % 3 > 0) for number in range(9)]
    (store,) = stores_of(tokenizer, tmp_path, written(tmp_path / "rows.jsonl", rows)).train
    packs = pack_answers(store, 96)
    found = {}
    for index in range(packs.num_packs):
        batch = collate_answers([(index, packs.pack(index))])
        answers = batch.labels[batch.labels != IGNORE_INDEX].split(batch.answer_lengths)
        for document, ids, label in zip(packs.documents(index), answers, batch.desirable, strict=True):
            found[document] = tokenizer.decode(ids), bool(label)
    assert found == {number: (f"{given['completion']}<|im_end|>", given["label"]) for number, given in enumerate(rows)}
    assert packs.num_targets == sum(len(given["completion"]) + 1 for given in rows)


def test_both_sides_of_a_pair_are_answers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", seed=1, num_pairs=5)
    (store,) = stores_of(tokenizer, tmp_path, path, max_seq_len=192).train
    assert desirable_answers(store).tolist() == [True, False] * 5


@pytest.mark.parametrize("from_pairs", [False, True], ids=["rows", "pairs"])
def test_a_mismatched_prompt_has_the_answer_to_another(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, from_pairs: bool
) -> None:
    if from_pairs:
        path = write_pairs(tmp_path / "pairs.jsonl", seed=1, num_pairs=4)
    else:
        path = written(tmp_path / "rows.jsonl", [row(number) for number in range(7)])
    (store,) = stores_of(tokenizer, tmp_path, path, max_seq_len=192).train
    matched, mismatched = (pack_answers(store, 192, mismatched=other) for other in (False, True))
    for index in range(matched.num_packs):
        own, other = matched.pack(index), mismatched.pack(index)
        bounds = [np.cumsum(pack.segment_lengths)[:-1] for pack in (own, other)]
        (ids, labels), (other_ids, other_labels) = (
            (np.split(pack.input_ids, at), np.split(pack.labels, at))
            for pack, at in zip((own, other), bounds, strict=True)
        )
        for document in range(len(own.segment_lengths)):
            first, other_first = (int((side[document] != IGNORE_INDEX).argmax()) + 1 for side in (labels, other_labels))
            assert (ids[document][:first] == other_ids[document][:other_first]).all()
            assert ids[document][first:].tolist() != other_ids[document][other_first:].tolist()


def mismatched_answers(tokenizer: PreTrainedTokenizerFast, store: TokenStore) -> dict[int, int]:
    """Document -> the one whose answer its prompt is given, where all answers are `answer NUMBER`."""
    packs, found = pack_answers(store, 192, mismatched=True), {}
    for index in range(packs.num_packs):
        batch = collate_answers([(index, packs.pack(index))])
        answers = batch.labels[batch.labels != IGNORE_INDEX].split(batch.answer_lengths)
        for document, ids in zip(packs.documents(index), answers, strict=True):
            found[document] = int(tokenizer.decode(ids).removeprefix("answer ").removesuffix("<|im_end|>"))
    return found


@pytest.mark.parametrize("prompts", ORDERS.values(), ids=ORDERS)
def test_a_mismatched_answer_is_never_to_the_same_prompt(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, prompts: list[str]
) -> None:
    rows = [answer(prompt, number) for number, prompt in enumerate(prompts)]
    (store,) = stores_of(tokenizer, tmp_path, written(tmp_path / "rows.jsonl", rows), max_seq_len=192).train
    others = mismatched_answers(tokenizer, store)
    assert all(prompts[document] != prompts[other] for document, other in others.items()), others
    if 2 * max(prompts.count(prompt) for prompt in prompts) <= len(prompts):
        assert sorted(others.values()) == list(
            range(len(prompts))
        )  # every answer once: the mean is over the same answers


def test_both_answers_of_many_pairs_of_few_prompts_are_mismatched(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pairs = [{"prompt": f"p{i % 3}", "chosen": f"answer {2 * i}", "rejected": f"answer {2 * i + 1}"} for i in range(9)]
    (store,) = stores_of(tokenizer, tmp_path, written(tmp_path / "pairs.jsonl", pairs), max_seq_len=192).train
    others = mismatched_answers(tokenizer, store)
    assert all(document // 2 % 3 != other // 2 % 3 for document, other in others.items())
    assert sorted(others.values()) == list(range(18))


def test_a_mismatched_answer_is_cut_at_the_longest_document(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p" * 40, "completion": "a", "label": True},
        {"prompt": "p", "completion": "b" * 50, "label": False},
    ]
    (store,) = stores_of(tokenizer, tmp_path, written(tmp_path / "rows.jsonl", rows)).train
    mismatched = pack_answers(store, 96, mismatched=True)
    lengths = [mismatched.pack(index).segment_lengths for index in range(mismatched.num_packs)]
    assert sorted(length for pack in lengths for length in pack)[-1] == 96


@pytest.mark.parametrize("rows", [[row(0)], [row(0), row(0)], [answer("same", number) for number in range(5)]], ids=len)
def test_answers_to_a_single_prompt_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (store,) = stores_of(tokenizer, tmp_path, written(tmp_path / "rows.jsonl", rows)).train
    with pytest.raises(ValueError, match="train split has answers to one prompt only"):
        pack_answers(store, 96, mismatched=True)


@pytest.mark.parametrize(("on_long_row", "kept"), [("drop", 1), ("truncate", 2)])
def test_a_long_prompt_is_dropped_or_loses_its_beginning(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, on_long_row: str, kept: int
) -> None:
    rows = [row(0), row(1), {"prompt": "x" * 90, "completion": "end", "label": False}]
    stores = stores_of(tokenizer, tmp_path, written(tmp_path / "rows.jsonl", rows), on_long_row=on_long_row)
    (ledger,) = stores.ledger.train
    assert ledger.kept["train"].documents == kept + 1
    if kept == 2:
        assert ledger.tokens["train"].rows_cut == 1
        (store,) = stores.train
        assert tokenizer.decode(store.tokens[-len("xxx<|im_end|>") :]).endswith("end<|im_end|>")


def test_the_ledger_accounts_for_every_row(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2) | {"label": None}]
    path = written(tmp_path / "rows.jsonl", rows)
    (ledger,) = stores_of(tokenizer, tmp_path, path, on_bad_row="skip").ledger.train
    assert (ledger.read.documents, ledger.kept["train"].documents, set(ledger.bad_rows)) == (3, 2, {"no label"})
    assert ledger.row_format == "labelled prompt/completion"
