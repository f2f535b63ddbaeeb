"""The number type that a model's weights are saved in, which its exports keep and a frozen base is held in.

That is the type of the weights themselves, which loses nothing. Some folders have a `config.json` that names another
one, which `transformers` would round them to.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from llmtrain.models.folders.bases import Base, innermost
from llmtrain.models.folders.files import MODEL_CONFIG
from llmtrain.system.paths import is_local, local_path
from llmtrain.system.precision import name_of

STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def saved_dtype(path: str, revision: str | None = None, trust_remote_code: bool = False) -> torch.dtype:
    """The type of most of a model's values, else the one that its configuration names; of an adapter's base."""
    base = innermost(path, revision)
    return stored_dtype(base) or _named_dtype(base, trust_remote_code) or torch.float32


def differing_dtype(path: str, revision: str | None = None, trust_remote_code: bool = False) -> str | None:
    """One line on a configuration that names another type than that of the weights; None: it does not."""
    base = innermost(path, revision)
    stored, named = stored_dtype(base), _named_dtype(base, trust_remote_code)
    if stored is None or named is None or stored == named:
        return None
    return (
        f"{base.path}: its {MODEL_CONFIG} names {name_of(named)}, its weights are in {name_of(stored)}: they are taken "
        "as they are"
    )


def stored_dtype(base: Base) -> torch.dtype | None:
    """The type of most values in the safetensors files of a model; None: it has none here, or is quantized."""
    counts: Counter[str] = Counter()
    for file in weight_files(base):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is not a mapping
                part = tensors.get_slice(name)
                counts[part.get_dtype()] += torch.Size(part.get_shape()).numel()
    return STORED.get(counts.most_common(1)[0][0]) if counts else None


def _named_dtype(base: Base, trust_remote_code: bool) -> torch.dtype | None:
    """The type that a configuration names; None: it names none that holds weights."""
    shape: PreTrainedConfig = AutoConfig.from_pretrained(
        base.path, revision=base.revision, trust_remote_code=trust_remote_code
    )
    dtype = shape.get_text_config().dtype or shape.dtype
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else None


def weight_files(base: Base) -> list[str]:
    """The files that `transformers` takes the weights from, loaded from the hub if they are not here."""
    if (whole := _file(base, SAFE_WEIGHTS_NAME)) is not None:
        return [whole]
    if (index := _file(base, SAFE_WEIGHTS_INDEX_NAME)) is None:
        return []
    tree: dict[str, Any] = json.loads(Path(index).read_text(encoding="utf-8"))
    files = (_file(base, name) for name in sorted(set(tree["weight_map"].values())))
    return [file for file in files if file is not None]


def _file(base: Base, name: str) -> str | None:
    found: str | None = cached_file(
        str(local_path(base.path)) if is_local(base.path) else base.path,
        name,
        revision=base.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found
