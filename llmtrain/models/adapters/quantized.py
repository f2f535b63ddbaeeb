"""A frozen base in 4 bits (QLoRA, Dettmers et al. 2023) or 16: how it is held, and how it is checked in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

from llmtrain.models.adapters.targets import linear_layers


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


def hold_linear_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Hold the frozen linear layers of a model that has its adapter in 16 bits, all but the head.

    Every other weight stays in fp32, so that autocast computes what it computes with all of them in fp32.
    """
    head = model.get_output_embeddings()
    for layer in linear_layers(model).values():
        for parameter in layer.parameters(recurse=False):
            if layer is not head and not parameter.requires_grad and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is held as two 4-bit values a byte."""
    return weight.dtype == torch.uint8


def num_weights(weight: Tensor) -> int:
    """How many weights a parameter holds."""
    return weight.numel() * (2 if is_packed(weight) else 1)


@contextmanager
def fp32_arithmetic(model: PreTrainedModel) -> Iterator[None]:
    """Let a model whose frozen base is in 16 or 4 bits compute in fp32 for a while; its weights stay as they are."""
    halves = [(each, each.dtype) for each in model.parameters() if each.dtype in (torch.bfloat16, torch.float16)]
    packed = [module for module in model.modules() if any(is_packed(p) for p in module.parameters(recurse=False))]
    for parameter, _ in halves:
        parameter.data = parameter.data.float()
    for module in packed:
        module.compute_dtype = torch.float32  # type: ignore[assignment]
    try:
        yield
    finally:
        for parameter, dtype in halves:
            parameter.data = parameter.data.to(dtype)
        for module in packed:
            module.compute_dtype = torch.bfloat16  # type: ignore[assignment]
