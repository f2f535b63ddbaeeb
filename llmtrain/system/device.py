"""What this device can do, decided once and by name: the attention kernel, the matmul peak, the memory used.

Everything else asks here, so a choice is made in one place and can be reported to the user.
"""

from __future__ import annotations

import re
import resource
import time
from typing import Literal

import torch

from llmtrain.system.cores import usable_cores

AttentionKernel = Literal["segments", "varlen", "mask", "padded", "equal", "fixed"]
"""How documents are kept separate: in one pack, by one of three kernels; or as rows (`models/paths/rows.py`)."""

ROWS = ("padded", "equal", "fixed")

# Dense bf16 peaks of data sheets, in FLOP/s, without sparsity; matched against the device's name in this order.
DATASHEET_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def attention_kernel(
    asked: Literal["auto", "segments", "varlen", "mask"], device: torch.device, dtype: torch.dtype, dropout: float
) -> AttentionKernel:
    """The attention kernel of a run; `auto` is varlen where it runs, segments elsewhere.

    varlen_attn, with the arguments of torch 2.13, needs an NVIDIA GPU of compute capability 8.0 or newer, fp16 or
    bf16, and has no dropout. Raises ValueError if varlen is asked for and cannot run.
    """
    obstacle = _varlen_obstacle(device, dtype, dropout)
    if asked == "auto":
        return "varlen" if obstacle is None else "segments"
    if asked == "varlen" and obstacle is not None:
        raise ValueError(f"model.attention=varlen {obstacle}: use segments or auto")
    return asked


def _varlen_obstacle(device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
    if device.type != "cuda":
        return f"needs an NVIDIA GPU, this is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"needs compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    if torch.__version__ < "2.13":
        return f"needs torch 2.13, this is {torch.__version__}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "needs train.precision bf16 or fp16"
    return "has no dropout" if dropout else None


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(FLOP/s that count as 100 % in MFU, source of the figure): a data sheet, or a measured matmul."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in DATASHEET_PEAKS.items():
            if re.search(rf"\b{known}\b", name):
                return (peak, f"data sheet of {known}, bf16") if dtype != torch.float32 else _measured(device, dtype)
    return _measured(device, dtype)


def _measured(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The best of several square matmuls, about 0.2 s on two CPU cores.

    Of a CPU it counts the time that this process computed, so that jobs beside it do not make the peak look low.
    """
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _synchronize(device)
        started, computed = time.perf_counter(), time.process_time()
        torch.mm(left, right)
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
        of_process = time.process_time() - computed  # 0 where the system counts in ticks longer than this
        if device.type == "cpu" and of_process > 0:
            best = min(best, of_process / min(torch.get_num_threads(), usable_cores()))
    return 2 * size**3 / best, f"measured {size}x{size} matmul, {str(dtype).removeprefix('torch.')}"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: the allocator's on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
