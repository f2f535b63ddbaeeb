"""What works under which engine, and why what does not is refused."""

from __future__ import annotations

from typing import Literal

Engine = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
ENGINES: tuple[Engine, ...] = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")

_FLAT = "it sees flat partitions there, not matrices"
_SHARDED = "no rank holds whole weights there"
_UNTESTED = "it is not tested there"
_NOWHERE: dict[Engine, str | None] = dict.fromkeys(ENGINES, _UNTESTED)

# What works under which engine: None where it does, else why it is refused.
CAPABILITIES: dict[str, dict[Engine, str | None]] = {
    "muon": {"single": None, "ddp": None, "zero1": _FLAT, "zero2": _FLAT, "zero3": _FLAT, "fsdp2": _SHARDED},
    "l1": {"single": None, "ddp": None, "zero1": _FLAT, "zero2": _FLAT, "zero3": _FLAT, "fsdp2": _SHARDED},
    "ema": {"single": None, "ddp": None, "zero1": None, "zero2": None, "zero3": _SHARDED, "fsdp2": _SHARDED},
    "compile": dict.fromkeys(ENGINES, None) | {"zero3": _UNTESTED, "fsdp2": _UNTESTED},
    "activation_checkpointing": dict.fromkeys(ENGINES, None) | {"fsdp2": _UNTESTED},
    "bf16": dict.fromkeys(ENGINES, None)
    | {"fsdp2": _UNTESTED, "zero1": "DeepSpeed swaps in an optimizer that cannot skip a bad step"},
    "fp16": _NOWHERE | {"single": None, "ddp": None},
    "best checkpoint": dict.fromkeys(ENGINES, None),
    "spike rollback": dict.fromkeys(ENGINES, None),
    "adapter": dict.fromkeys(ENGINES, None) | {"fsdp2": _UNTESTED},
    "dora": dict.fromkeys(ENGINES, None) | {"zero3": "its norms need whole weights", "fsdp2": _UNTESTED},
    "quantize": _NOWHERE | {"single": None, "ddp": None},
    "8-bit optimizer": _NOWHERE | {"single": None, "ddp": None},
    "rollouts": dict.fromkeys(ENGINES, None) | {"fsdp2": _SHARDED},
}
NEED_CUDA = ("quantize", "8-bit optimizer")
