"""Trained parameters and optimizer state by name, in full, of torch's own optimizers: what a checkpoint holds.

Frozen parameters are not part of it: a run makes them again, as they were when it started.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from llmtrain.train.engines.base import NamedState, ReadState


def named_state(model: nn.Module, optimizer: Optimizer, is_main: bool) -> NamedState:
    """Each trained parameter and persistent buffer under `param`, with its optimizer state.

    Collective if parameters are DTensors. Ranks other than the main one get empty dictionaries.
    """
    for name, parameter in trained_parameters(model):
        state = {"param": parameter} | optimizer.state.get(parameter, {})
        full = {key: whole(torch.as_tensor(value)) for key, value in state.items()}  # 8-bit AdamW counts in an int
        yield name, {key: value.detach().cpu() for key, value in full.items()} if is_main else {}
    yield from named_buffers(model, is_main)


@torch.no_grad()
def load_named_state(model: nn.Module, optimizer: Optimizer, read: ReadState) -> None:
    """Set parameters, buffers and optimizer state to what `read(name)` gives; the groups' settings stay.

    Raises ValueError if a shape differs.
    """
    index_of = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    states: dict[int, dict[str, Tensor | int]] = {}
    for name, parameter in trained_parameters(model):
        saved = read(name)
        value = saved.pop("param")
        check_shape(name, value, parameter.shape)
        parameter.copy_(_sharded_like(parameter, value))
        if saved:
            states[index_of[id(parameter)]] = {
                key: int(state) if state.dtype == torch.int64 else _sharded_like(parameter, state)
                for key, state in saved.items()
            }
    load_buffers(model, read)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def checked_state(named: NamedState, trained: Collection[str]) -> NamedState:
    """The same state; at its end ValueError if one of the trained parameters came without optimizer state."""
    without = set(trained)
    for name, tensors in named:
        if len(tensors) > 1:
            without.discard(name)
        yield name, tensors
    if without:
        raise ValueError(f"the optimizer has no state of {_some(without)}: a checkpoint would lose it; report this")


def checked_read(read: ReadState, trained: Collection[str]) -> ReadState:
    """The same reader; it raises ValueError if it finds no optimizer state of one of the trained parameters."""

    def complete(name: str) -> dict[str, Tensor]:
        tensors = read(name)
        if name in trained and len(tensors) == 1:
            raise ValueError(
                f"the checkpoint has no optimizer state of {name}, which is trained: it was lost before it was saved; "
                "remove this checkpoint to continue from the one before"
            )
        return tensors

    return complete


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more parameters" if len(names) > len(first) else "")


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def named_buffers(model: nn.Module, is_main: bool) -> NamedState:
    for name, buffer in _persistent_buffers(model):
        yield name, {"param": buffer.detach().cpu()} if is_main else {}


def load_buffers(model: nn.Module, read: ReadState) -> None:
    for name, buffer in _persistent_buffers(model):
        value = read(name)["param"]
        check_shape(name, value, buffer.shape)
        buffer.copy_(value)


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of a model's state dict."""
    saved = model.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor in the layout of the parameter; a scalar stays as it is."""
    if isinstance(parameter, DTensor) and value.dim():
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def check_shape(name: str, saved: Tensor, expected: torch.Size) -> None:
    if saved.shape != expected:
        raise ValueError(
            f"parameter {name} has shape {tuple(saved.shape)} in the checkpoint and {tuple(expected)} in the model: "
            "it is of another model"
        )
