"""A frozen base in 4 bits (QLoRA, Dettmers et al. 2023): what loads it, and its arithmetic for a check in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4() -> BitsAndBytesConfig:
    """NF4 with quantized constants, computing in bf16 (QLoRA, section 3).

    Raises ValueError without an NVIDIA GPU or bitsandbytes.
    """
    if not torch.cuda.is_available():
        accelerator = torch.accelerator.current_accelerator()
        kind = "cpu" if accelerator is None else accelerator.type
        raise ValueError(f"model.quantize=nf4 needs an NVIDIA GPU (this is {kind}): leave it out")
    if find_spec("bitsandbytes") is None:
        raise ValueError("model.quantize=nf4 needs bitsandbytes: pip install 'llmtrain[quantize]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is held as two 4-bit values a byte."""
    return weight.dtype == torch.uint8


def num_weights(weight: Tensor) -> int:
    """How many weights a parameter holds."""
    return weight.numel() * (2 if is_packed(weight) else 1)


@contextmanager
def fp32_arithmetic(model: PreTrainedModel) -> Iterator[None]:
    """Let a model whose frozen base is in bf16 or 4 bits compute in fp32 for a while; its weights stay as they are."""
    halves = [parameter for parameter in model.parameters() if parameter.dtype == torch.bfloat16]
    packed = [module for module in model.modules() if any(is_packed(p) for p in module.parameters(recurse=False))]
    for parameter in halves:
        parameter.data = parameter.data.float()
    for module in packed:
        module.compute_dtype = torch.float32  # type: ignore[assignment]
    try:
        yield
    finally:
        for parameter in halves:
            parameter.data = parameter.data.bfloat16()
        for module in packed:
            module.compute_dtype = torch.bfloat16  # type: ignore[assignment]
