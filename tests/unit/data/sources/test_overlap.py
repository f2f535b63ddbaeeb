"""A file that is trained on and held out is refused, in every kind of run and under every name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import write_model
from tiny_tokenizers import byte_level_bpe
from transformers import AutoTokenizer

from llmtrain.config.rl import PreferenceDataConfig, PromptDataConfig
from llmtrain.config.sections import ChatDataConfig, DataConfig
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.formats.prompts import load_prompts
from llmtrain.data.store.kinds import build_answer_stores, build_chat_stores, build_pair_stores
from llmtrain.data.store.text import build_text_stores

Load = Callable[[dict[str, Any]], object]


def silent(line: str) -> None:
    pass


def rows(path: Path, names: Sequence[str]) -> Path:
    """Rows that every kind of run can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [{"prompt": f"{name}?", "chosen": f"yes {name}", "rejected": "no", "text": name} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in fields))
    return path


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Load]:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))
    turns, answers = (ChatEncoder(tokenizer, plain=False, loss_on=what) for what in ("assistant", "completion"))

    def chats(data: dict[str, Any]) -> object:
        fields = {"completion": "chosen"}
        data = data | {key: [each | {"fields": fields} for each in data[key]] for key in ("train", "eval")}
        return build_chat_stores(ChatDataConfig.model_validate(data), turns, report=silent)

    def pairs(data: dict[str, Any]) -> object:
        return build_pair_stores(PreferenceDataConfig.model_validate(data), answers, report=silent)

    def labelled(data: dict[str, Any]) -> object:
        return build_answer_stores(PreferenceDataConfig.model_validate(data), answers, report=silent)

    def prompts(data: dict[str, Any]) -> object:
        return load_prompts(PromptDataConfig.model_validate(data), tokenizer, max_new_tokens=4, report=silent)

    def text(data: dict[str, Any]) -> object:
        return build_text_stores(DataConfig.model_validate(data), byte_level_bpe(), report=silent)

    return {"text": text, "chats": chats, "pairs": pairs, "labelled": labelled, "prompts": prompts}


@pytest.fixture(params=["text", "chats", "pairs", "labelled", "prompts"])
def load(request: pytest.FixtureRequest, loads: dict[str, Load], tmp_path: Path) -> Load:
    def from_sources(data: dict[str, Any]) -> object:
        return loads[request.param](data | {"cache_dir": str(tmp_path / "cache")})

    return from_sources


def refused(load: Load, train: dict[str, Any], held_out: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match="so that it would be trained on and evaluated") as raised:
        load({"train": [train], "eval": [held_out]})
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_in_the_folder_that_is_trained_on_is_refused_and_can_be_excluded(load: Load, tmp_path: Path):
    folder = tmp_path / "data"
    rows(folder / "sub" / "a.jsonl", "abc")
    held_out = rows(folder / "sub" / "held.jsonl", "def")
    message = refused(load, {"path": str(folder)}, {"path": str(held_out)})
    assert "exclude: [sub/held.jsonl]" in message and "data.train[0]" in message and "data.eval[0]" in message
    assert load({"train": [{"path": str(folder), "exclude": ["sub/held.jsonl"]}], "eval": [{"path": str(held_out)}]})


@pytest.mark.parametrize("how", ["glob", "link", "copy", "another suffix", "folder"])
def test_the_same_content_under_another_name_is_refused(load: Load, tmp_path: Path, how: str):
    path = rows(tmp_path / "data" / "a.jsonl", "abc")
    other = tmp_path / "other" / ("b.json" if how == "another suffix" else "b.jsonl")
    other.parent.mkdir()
    if how == "link":
        other.symlink_to(path)
    elif how != "glob":
        shutil.copy(path, other)
    named = {"glob": f"{path.parent}/*.jsonl", "folder": str(other.parent)}.get(how, str(other))
    refused(load, {"path": str(path)}, {"path": named})
    refused(load, {"path": named}, {"path": str(path)})


def test_slices_of_one_source_that_do_not_meet_are_fine_and_those_that_do_are_refused(load: Load, tmp_path: Path):
    path = str(rows(tmp_path / "a.jsonl", "abcdefghij"))
    assert load({"train": [{"path": path, "slice": "0%:60%"}], "eval": [{"path": path, "slice": "60%:100%"}]})
    refused(load, {"path": path, "slice": "0%:60%"}, {"path": path, "slice": "50%:100%"})
    refused(load, {"path": path}, {"path": path, "slice": "90%:100%"})
    refused(load, {"path": path, "slice": "0%:60%"}, {"path": path})


def test_splits_of_one_folder_are_fine(load: Load, tmp_path: Path):
    rows(tmp_path / "data" / "train.jsonl", "abc")
    rows(tmp_path / "data" / "test.jsonl", "def")
    folder = str(tmp_path / "data")
    assert load({"train": [{"path": folder}], "eval": [{"path": folder, "split": "test"}]})
    refused(load, {"path": folder}, {"path": folder})
