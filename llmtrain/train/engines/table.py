"""The engines, one row each: which launch it is, what drives it, which features it refuses and why.

The table of docs/pretrain.md is made from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from accelerate import Accelerator
from accelerate.utils import DistributedType

from llmtrain.train.engines.base import MakeEngine
from llmtrain.train.engines.deepspeed import DeepSpeedEngine
from llmtrain.train.engines.plain import PlainEngine

FEATURES = (
    "muon",
    "l1",
    "ema",
    "compile",
    "activation_checkpointing",
    "bf16",
    "fp16",
    "best checkpoint",
    "spike rollback",
    "adapter",
    "adapter on experts",
    "dora",
    "quantize",
    "8-bit optimizer",
    "rollouts",
)
NEED_CUDA = ("quantize", "8-bit optimizer")
DDP_TYPES = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)

_FLAT = "it sees flat partitions there, not matrices"
_SHARDED = "no rank holds whole weights there"
_UNTESTED = "it is not tested there"
_EXPERTS = "adapter on experts"
_CUDA_ONLY = dict.fromkeys(("fp16", *NEED_CUDA), _UNTESTED)
_ZERO = {"muon": _FLAT, "l1": _FLAT, _EXPERTS: _UNTESTED, **_CUDA_ONLY}
_ANY_ENGINE = frozenset({"best checkpoint", "spike rollback"})
_SUPPORTED_PLAIN = _ANY_ENGINE | {
    "muon",
    "l1",
    "ema",
    "compile",
    "activation_checkpointing",
    "bf16",
    "fp16",
    "adapter",
    "adapter on experts",
    "dora",
    "quantize",
    "8-bit optimizer",
    "rollouts",
}
_SUPPORTED_ZERO = _ANY_ENGINE | {"activation_checkpointing", "adapter", "rollouts"}
_CAST = "the model's own weights are {precision} there, and the average would be of those"


@dataclass(frozen=True)
class EngineRow:
    """What is known of an engine before it is made."""

    make: MakeEngine
    is_launched: Callable[[Accelerator], bool]
    supports: frozenset[str]  # features that a test or a benchmark covers; a new feature is named in each row
    refuses: Mapping[str, str] = field(default_factory=dict)  # feature -> why
    refuses_unless_fp32: Mapping[str, str] = field(default_factory=dict)  # the same, in other precisions


def _is_single(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.NO


def _is_ddp(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in DDP_TYPES


def _is_fsdp(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def _is_zero(stage: int) -> Callable[[Accelerator], bool]:
    def is_launched(accelerator: Accelerator) -> bool:
        is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        return is_deepspeed and accelerator.state.deepspeed_plugin.zero_stage == stage

    return is_launched


ENGINES: dict[str, EngineRow] = {
    "single": EngineRow(PlainEngine, _is_single, _SUPPORTED_PLAIN),
    "ddp": EngineRow(PlainEngine, _is_ddp, _SUPPORTED_PLAIN),
    "zero1": EngineRow(
        DeepSpeedEngine,
        _is_zero(1),
        _SUPPORTED_ZERO | {"compile", "dora"},
        _ZERO | {"bf16": "DeepSpeed swaps in an optimizer that cannot skip a bad step"},
        {"ema": _CAST},
    ),
    "zero2": EngineRow(
        DeepSpeedEngine, _is_zero(2), _SUPPORTED_ZERO | {"bf16", "compile", "dora"}, _ZERO, {"ema": _CAST}
    ),
    "zero3": EngineRow(
        DeepSpeedEngine,
        _is_zero(3),
        _SUPPORTED_ZERO | {"bf16"},
        _ZERO | {"ema": _SHARDED, "compile": _UNTESTED, "dora": "its norms need whole weights", _EXPERTS: _SHARDED},
    ),
    "fsdp2": EngineRow(
        PlainEngine,
        _is_fsdp,
        _ANY_ENGINE | {"activation_checkpointing", "bf16"},
        dict.fromkeys(("muon", "l1", "ema", "rollouts"), _SHARDED)
        | dict.fromkeys(("compile", "adapter", _EXPERTS, "dora"), _UNTESTED)
        | _CUDA_ONLY,
    ),
}


def launched_engine(accelerator: Accelerator) -> str:
    """The engine that accelerate made of the launch. Raises ValueError for one that is not supported."""
    for name, row in ENGINES.items():
        if row.is_launched(accelerator):
            return name
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        raise ValueError(f"zero_stage: {stage} in DeepSpeed's configuration is not supported: use 1, 2 or 3, or DDP")
    raise ValueError(f"accelerate's distributed_type {kind.value} is not supported: use one of {', '.join(ENGINES)}")


def refusal(feature: str, engine: str, precision: str) -> str | None:
    """Why a feature does not work under an engine; None if it does."""
    row = ENGINES[engine]
    reason = row.refuses.get(feature)
    if reason is None and precision != "fp32" and feature in row.refuses_unless_fp32:
        reason = row.refuses_unless_fp32[feature].format(precision=precision)
    return reason


def check_features(features: Mapping[str, bool], *, engine: str, precision: str, device_type: str) -> None:
    """Raise ValueError if a feature that is on does not work under this engine, in this precision or on this device."""
    for feature in (name for name, is_on in features.items() if is_on):
        assert feature in FEATURES, feature
        if (reason := refusal(feature, engine, precision)) is not None:
            able = [other for other in ENGINES if refusal(feature, other, precision) is None]
            raise ValueError(f"{feature} does not work under {engine}: {reason}; use {' or '.join(able)}")
        if feature in NEED_CUDA and device_type != "cuda":
            raise ValueError(f"{feature} needs an NVIDIA GPU, this is {device_type}")
