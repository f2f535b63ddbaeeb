"""Folders whose weights are saved in few bits: which of them can be trained, as the numbers they encode.

gpt-oss is published in MXFP4: 4 bits a value, and a power of two for each 32 of them, which bf16 has exactly. Its
weights are read as bf16 and trained like any others. Of the other forms, in which a model was rounded after training,
the model that they were made from is what to train.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.utils.quantization_config import Mxfp4Config

READ_AS_BF16 = "mxfp4"


def packing_of(shape: PreTrainedConfig) -> str | None:
    """What a configuration calls the form of its weights: `mxfp4`, `fp8`, `gptq`, `awq`, ...; None: plain numbers."""
    for part in (shape, shape.get_text_config()):
        if settings := part.to_dict().get("quantization_config"):
            return str(settings.get("quant_method") or "quantized")
    return None


def unpacking(shape: PreTrainedConfig) -> dict[str, Any]:
    """What `from_pretrained` needs to read weights of a form that can be trained as plain numbers."""
    return {"quantization_config": Mxfp4Config(dequantize=True)} if packing_of(shape) == READ_AS_BF16 else {}


def require_trainable_form(shape: PreTrainedConfig, path: str) -> None:
    """Raise ValueError for weights in a form that only runs."""
    form = packing_of(shape)
    if form not in (None, READ_AS_BF16):
        raise ValueError(
            f"model.path={path}: its weights are quantized ({form}): take the model that they were made from"
        )
