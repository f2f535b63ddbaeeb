"""The number type that a model's weights are saved in, which its exports keep."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from llmtrain.models.folders.bases import innermost


def saved_dtype(path: str, revision: str | None = None, trust_remote_code: bool = False) -> torch.dtype:
    """The type in a folder's or a hub model's configuration, else that of its first weights; of an adapter's base."""
    path, revision = innermost(path, revision)
    shape = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    return configured_dtype(shape) or _stored_dtype(Path(path).expanduser()) or torch.float32


def configured_dtype(shape: PreTrainedConfig) -> torch.dtype | None:
    """The type that a configuration names; None: it names none that holds weights."""
    dtype = shape.get_text_config().dtype or shape.dtype
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else None


def _stored_dtype(folder: Path) -> torch.dtype | None:
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is not a mapping
                if (dtype := tensors.get_slice(name).get_dtype()) in STORED:
                    return STORED[dtype]
    return None


STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
