"""Weights that ZeRO-3 shards, whole on every rank for a while: to generate, and to read logprobs and values.

DeepSpeed gathers a module's weights around that module's own call, which every rank has to make in the same order.
Ranks whose responses end at different lengths do not, and would wait for each other without end. So all weights are
gathered at once, and until they are sharded again DeepSpeed's hooks are out of the way: they would gather and free
weights at each call, and compare the calls of all ranks. The hooks themselves go back as they were, so training goes
on undisturbed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def whole_weights(engine: Any, module: nn.Module) -> Iterator[None]:
    """The parameters of a module of the engine's, whole; they may be read, not written. Collective on entry."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    engine.empty_partition_cache()  # what is gathered ahead of its use would be taken for whole
    offload = engine.optimizer.parameter_offload
    hooks = [offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks]
    with GatheredParameters(module.parameters()), _put_aside(hooks):
        yield


@contextmanager
def _put_aside(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks out of their modules, then put the same ones back in the same order."""
    taken = []
    for handle in handles:
        hooks = handle.hooks_dict_ref()
        assert hooks is not None
        taken.append((hooks, handle.id, hooks.pop(handle.id)))
    try:
        yield
    finally:
        for hooks, number, hook in taken:
            hooks[number] = hook
