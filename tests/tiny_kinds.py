"""Every kind of data that a run prepares, from one file of rows that each of them can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tiny_chat import write_model
from tiny_tokenizers import byte_level_bpe
from transformers import AutoTokenizer

from llmtrain.config.data import ChatDataConfig, DataConfig
from llmtrain.config.rl import PreferenceDataConfig, PromptDataConfig
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.prompts import load_prompts
from llmtrain.data.store.build import find_or_build
from llmtrain.data.store.kinds import answer_specs, chat_specs, pair_specs
from llmtrain.data.store.spec import StoreSpecs
from llmtrain.data.store.text import text_specs
from llmtrain.protocols import Report

Load = Callable[[dict[str, Any], Report], Any]


def write_kinds(path: Path, names: Sequence[str]) -> Path:
    """Rows with a text, a chat, a pair of answers and a label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row_of(name)) + "\n" for name in names))
    return path


def row_of(name: str) -> dict[str, Any]:
    return {"prompt": f"{name}?", "chosen": f"yes {name}", "rejected": "no", "text": name, "good": len(name) % 2 == 0}


def text(data: dict[str, Any], report: Report) -> StoreSpecs:
    return text_specs(DataConfig.model_validate(data), byte_level_bpe(), report=report)


def chats(data: dict[str, Any], report: Report) -> StoreSpecs:
    config = ChatDataConfig.model_validate(_with_fields(data, {"completion": "chosen"}))
    return chat_specs(config, _encoder("assistant"), report=report)


def pairs(data: dict[str, Any], report: Report) -> StoreSpecs:
    return pair_specs(PreferenceDataConfig.model_validate(data), _encoder("completion"), report=report)


def labelled(data: dict[str, Any], report: Report) -> StoreSpecs:
    config = PreferenceDataConfig.model_validate(_with_fields(data, {"completion": "chosen", "label": "good"}))
    return answer_specs(config, _encoder("completion"), report=report)


def prompts(data: dict[str, Any], report: Report) -> Any:
    return load_prompts(PromptDataConfig.model_validate(data), _tokenizer(), max_new_tokens=4, report=report)


def _stores(specs_of: Load) -> Load:
    return lambda data, report: find_or_build(specs_of(data, report), report)


SPECS: dict[str, Load] = {"text": text, "chats": chats, "pairs": pairs, "labelled": labelled}
STORES: dict[str, Load] = {kind: _stores(specs_of) for kind, specs_of in SPECS.items()}
KINDS: dict[str, Load] = STORES | {"prompts": prompts}


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(write_model(Path(mkdtemp(prefix="tiny-kinds-"))))


@cache
def _encoder(loss_on: str) -> ChatEncoder:
    return ChatEncoder(_tokenizer(), plain=False, loss_on=loss_on)


def _with_fields(data: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    """The data with each source's fields named, but of stores, which have none."""

    def named(sources: Any) -> list[Any]:
        listed = sources if isinstance(sources, list) else [sources]
        listed = [{"path": each} if isinstance(each, str) else each for each in listed]
        return [each if (Path(each["path"]) / "store.json").exists() else each | {"fields": fields} for each in listed]

    return data | {key: named(data[key]) for key in ("train", "eval") if data.get(key)}
