"""Folders whose weights are saved in few bits: which of them can be trained, and how they are read.

Bitsandbytes' 4 bits are the frozen base of an adapter. gpt-oss is published in MXFP4: 4 bits a value, and a power of
two for each 32 of them, which bf16 has exactly; its weights are read as bf16 and trained like any others. Of the other
forms, in which a model was rounded after training, the model that they were made from is what to train.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils.quantization_config import Mxfp4Config

from llmtrain.config.sections import PretrainedModelConfig, TunedModelConfig

FOUR_BITS = ("nf4", "fp4")
"""Forms of bitsandbytes' 4 bits."""
READ_AS_BF16 = "mxfp4"


def stored_form(shape: PreTrainedConfig) -> str | None:
    """How a model's weights are saved in its folder: `nf4`, `fp4`, `mxfp4`, `gptq`, ...; None: as plain numbers."""
    for part in (shape, shape.get_text_config()):
        if fields := part.to_dict().get("quantization_config"):
            break
    else:
        return None
    method = str(fields.get("quant_method", "an unknown way"))
    if method != "bitsandbytes":
        return method
    return str(fields.get("bnb_4bit_quant_type", "fp4")) if fields.get("load_in_4bit") else "int8"


def unpacking(shape: PreTrainedConfig) -> dict[str, Any]:
    """What `from_pretrained` needs to read weights of a form that can be trained as plain numbers."""
    return {"quantization_config": Mxfp4Config(dequantize=True)} if stored_form(shape) == READ_AS_BF16 else {}


def require_trainable_form(config: PretrainedModelConfig, shape: PreTrainedConfig) -> None:
    """Raise ValueError for weights that are saved in a way that cannot be trained, or that a recipe does not take."""
    form = stored_form(shape)
    if form in (None, READ_AS_BF16):
        return
    where = f"model.path={config.path}: its weights are quantized ({form})"
    if form not in FOUR_BITS:
        raise ValueError(f"{where}: take the model that they were made from")
    if not isinstance(config, TunedModelConfig):
        raise ValueError(f"{where}, and pretraining trains every weight: take the model that they were made from")
    if config.quantize is not None:
        raise ValueError(f"{where} already: leave out model.quantize={config.quantize}")


def require_opener(shape: PreTrainedConfig, where: str) -> None:
    """Raise ValueError for weights in bitsandbytes' 4 bits if that is not installed; `where`: names the model."""
    if (form := stored_form(shape)) in FOUR_BITS and find_spec("bitsandbytes") is None:
        raise ValueError(
            f"{where}: its weights are in 4 bits ({form}), which needs bitsandbytes: pip install 'llmtrain[quantize]'"
        )


def as_stored(shape: PreTrainedConfig, where: str) -> dict[str, Any]:
    """What loads a base that is in 4 bits in its folder, onto this machine's device.

    It computes in bf16 on an accelerator, in fp32 on a CPU. `where`: names it in messages. Raises ValueError without
    bitsandbytes, and for weights that are stored as floats.
    """
    require_opener(shape, where)
    settings = shape.quantization_config
    if (storage := settings.get("bnb_4bit_quant_storage", "uint8")) != "uint8":
        raise ValueError(f"{where}: its weights in 4 bits are stored as {storage}, and can be used in uint8 only")
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    settings["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    return {"dtype": dtype, "device_map": {"": device}}
