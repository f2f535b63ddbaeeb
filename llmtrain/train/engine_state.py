"""Parameters and optimizer state by parameter name, in full, under every engine: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def named_state(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each parameter and persistent buffer: `param`, and its optimizer state under the optimizer's own keys."""
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        yield name, {"param": parameter.detach()} | {key: value.detach() for key, value in state.items()}
    for name, buffer in persistent_buffers(model):
        yield name, {"param": buffer}


@torch.no_grad()
def load_named_state(model: nn.Module, optimizer: Optimizer, read: Callable[[str], dict[str, Tensor]]) -> None:
    """Set parameters, buffers and optimizer state to what `read(name)` gives; the groups' settings stay."""
    index_of = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    states: dict[int, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        saved = read(name)
        _copy(name, saved.pop("param"), parameter)
        if saved:
            states[index_of[id(parameter)]] = saved
    for name, buffer in persistent_buffers(model):
        _copy(name, read(name)["param"], buffer)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of a model's state dict."""
    saved = model.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _copy(name: str, saved: Tensor, target: Tensor) -> None:
    if saved.shape != target.shape:
        raise ValueError(
            f"checkpoint parameter {name} has shape {tuple(saved.shape)}, the model's has {tuple(target.shape)}: "
            "the checkpoint is of another model"
        )
    target.copy_(saved)
