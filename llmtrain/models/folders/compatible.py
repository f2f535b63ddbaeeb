"""The files of a model's folder in words that transformers 4 and what is built on it read too.

transformers 5 writes names that it alone knows. transformers 4 refuses some of them (a tokenizer of the class
`TokenizersBackend`), and passes over others without a word: it would take RoPE's default theta for the one in
`rope_parameters`. Here the files get the older names as well, where transformers 5 still reads the same from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmtrain.models.folders.files import MODEL_CONFIG, TOKENIZER_CONFIG

LOCAL_ROPE = "rope_local_base_freq"  # Gemma 3's theta of windowed layers, as transformers 4 names it


def save_tokenizer_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer that gives the same ids wherever its folder is loaded.

    One that the `tokenizers` library runs is written as the plain class of such tokenizers, which takes everything from
    `tokenizer.json`: some classes of transformers 4 would add a BOS of their own.
    """
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(tokenizer, PreTrainedTokenizerFast) and "auto_map" not in tree:
        tree["tokenizer_class"] = "PreTrainedTokenizerFast"
        tree["model_input_names"] = list(tokenizer.model_input_names)  # the plain class has more
        tree["clean_up_tokenization_spaces"] = bool(tree.get("clean_up_tokenization_spaces", False))
    if isinstance(extra := tree.get("extra_special_tokens"), list):
        tree["additional_special_tokens"] = tree.pop("extra_special_tokens") if extra else []
    _write(path, tree)


def add_older_names(folder: Path, trust_remote_code: bool = False) -> None:
    """Add to a saved `config.json` what transformers 4 calls the dtype and RoPE's parameters."""
    path = folder / MODEL_CONFIG
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    older = _with_older_names(tree)
    if older == tree:
        return
    before = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).to_dict()
    _write(path, older)
    after = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).to_dict()
    if _known(after, before) != before:
        _write(path, tree)


def _with_older_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's tree with the older names beside the newer, in the configurations inside it too."""
    older = {name: _with_older_names(part) if "model_type" in _keys(part) else part for name, part in tree.items()}
    if isinstance(dtype := tree.get("dtype"), str):
        older["torch_dtype"] = dtype
    rope = tree.get("rope_parameters")
    if not isinstance(rope, dict):
        return older
    by_layer = {name: part for name, part in rope.items() if isinstance(part, dict)}
    if not by_layer:
        return older | _older_rope(rope)
    if set(by_layer) == {"full_attention", "sliding_attention"} and tree.get("model_type") in ("gemma3", "gemma3_text"):
        return older | _older_rope(rope["full_attention"]) | {LOCAL_ROPE: rope["sliding_attention"]["rope_theta"]}
    if all(part == next(iter(by_layer.values())) for part in by_layer.values()):
        return older | _older_rope(next(iter(by_layer.values())))
    return older


def _older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's parameters as transformers 4 has them: theta and the rotated share by themselves, a scaling beside."""
    outside = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if rope.get(name) is not None}
    if rope.get("rope_type", "default") == "default":
        return outside
    return outside | {"rope_scaling": {name: value for name, value in rope.items() if name not in outside}}


def _known(tree: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a tree that another one has too."""
    return {
        name: _known(value, names[name]) if isinstance(value, dict) and isinstance(names[name], dict) else value
        for name, value in tree.items()
        if name in names
    }


def _keys(part: Any) -> set[str]:
    return set(part) if isinstance(part, dict) else set()


def _write(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
