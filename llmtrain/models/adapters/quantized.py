"""A frozen base in 4 bits (QLoRA, Dettmers et al. 2023) or 16: how it is held, and how it is checked in fp32.

The 4 bits are made here (`model.quantize`), or a folder has them already, written by bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
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


def in_4_bits(model: nn.Module) -> bool:
    """Whether a model holds weights in 4 bits."""
    return any(is_packed(weight) for weight in model.parameters())


def keep_layout(model: PreTrainedModel) -> None:
    """Let the bytes of a base in 4 bits stay as they are, on a CPU too.

    There bitsandbytes would change them at the first forward, to a layout in bf16 that has no backward.
    """
    for module in model.modules():
        if _is_packed_layer(module):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A model in 4 bits with the values that its layers compute with, in fp32."""
    plain: PreTrainedModel = model.dequantize()
    vars(plain).pop("_weight_conversions", None)  # how the 4 bits were read, which saving would have to undo
    return plain.float()


def num_weights(weight: Tensor) -> int:
    """How many weights a parameter holds."""
    return weight.numel() * (2 if is_packed(weight) else 1)


@contextmanager
def fp32_arithmetic(model: PreTrainedModel) -> Iterator[None]:
    """Let a model whose frozen base is in 16 or 4 bits compute in fp32 for a while; its weights stay as they are."""
    halves = [(each, each.dtype) for each in model.parameters() if each.dtype in (torch.bfloat16, torch.float16)]
    packed: list[tuple[Any, Any]] = [
        (layer, layer.compute_dtype) for layer in model.modules() if _is_packed_layer(layer)
    ]
    for parameter, _ in halves:
        parameter.data = parameter.data.float()
    for layer, _ in packed:
        layer.compute_dtype = torch.float32
    try:
        yield
    finally:
        for parameter, dtype in halves:
            parameter.data = parameter.data.to(dtype)
        for layer, dtype in packed:
            layer.compute_dtype = dtype


def _is_packed_layer(module: nn.Module) -> bool:
    return any(is_packed(parameter) for parameter in module.parameters(recurse=False))
