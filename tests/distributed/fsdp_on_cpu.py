"""FSDP2 on a CPU over gloo, for tests: accelerate makes it of GPUs only, and we refuse it elsewhere."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from llmtrain.train import runtime
from llmtrain.train.engines.launch import check_environment


def allow() -> None:
    """From now on a launch that asks for FSDP2 gets it, in this process."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return
    patch.object(AcceleratorState, "__init__", _with_fsdp(AcceleratorState.__init__)).start()
    patch.object(runtime, "check_environment", _as_on_gpus).start()


def _with_fsdp(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def start(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    return start


def _as_on_gpus(environment: Mapping[str, str], *, precision: str, has_accelerator: bool) -> None:
    check_environment(environment, precision=precision, has_accelerator=True)
