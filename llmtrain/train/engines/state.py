"""Trainable parameters and optimizer state by name, in full, under every engine: what a checkpoint holds.

Frozen parameters are not part of it: a run makes them anew, as they were when it started.

DeepSpeed keeps fp32 weights and optimizer state in flat partitions. Its public `safe_get_full_*` and
`safe_set_full_*` reach single parameters in them. What they leave to us in 0.19.8 needs private names, in
`_Zero12`, `_Zero3` and `_Flats` below and nowhere else:

- ZeRO-1/2 link optimizer state to parameters once the first parameter group has stepped, so that of the other
  groups is missing: `_link` links it again;
- optimizer state does not exist before the first step: `make_state` makes it;
- setting fp32 weights leaves the model's own copy as it was: `set_model_copy` and `refresh` bring it up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

Read = Callable[[str], dict[str, Tensor]]


def named_state(model: nn.Module, optimizer: Optimizer, is_main: bool) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """One process, DDP, FSDP2: each trained parameter and persistent buffer under `param`, with its optimizer state.

    Collective under FSDP2. Ranks other than the main one get empty dictionaries.
    """
    for name, parameter in _trained(model):
        state = {"param": parameter} | optimizer.state.get(parameter, {})
        full = {key: whole(torch.as_tensor(value)) for key, value in state.items()}  # 8-bit AdamW counts in an int
        yield name, {key: value.detach().cpu() for key, value in full.items()} if is_main else {}
    yield from _named_buffers(model, is_main)


@torch.no_grad()
def load_named_state(model: nn.Module, optimizer: Optimizer, read: Read) -> None:
    """Set parameters, buffers and optimizer state to what `read(name)` gives; the groups' settings stay.

    Raises ValueError where a shape differs.
    """
    index_of = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    states: dict[int, dict[str, Tensor | int]] = {}
    for name, parameter in _trained(model):
        saved = read(name)
        value = saved.pop("param")
        _check_shape(name, value, parameter.shape)
        parameter.copy_(_sharded_like(parameter, value))
        if saved:
            states[index_of[id(parameter)]] = {
                key: int(state) if state.dtype == torch.int64 else _sharded_like(parameter, state)
                for key, state in saved.items()
            }
    _load_buffers(model, read)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def zero_named_state(engine: Any, is_main: bool) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same under ZeRO, gathered one parameter at a time. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    partitions = _partitions(engine)
    for name, parameter in _trained(engine.module):
        full = {"param": safe_get_full_fp32_param(parameter)}
        for key, value in partitions.state_of(parameter).items():
            full[key] = safe_get_full_optimizer_state(parameter, key) if value.dim() else value.clone()
        yield name, {key: value.detach().cpu() for key, value in full.items()} if is_main else {}
    yield from _named_buffers(engine.module, is_main)


@torch.no_grad()
def load_zero_named_state(engine: Any, read: Read) -> None:
    """Set what `zero_named_state` gives. Collective; every rank reads."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    partitions = _partitions(engine)
    partitions.make_state(read)
    for name, parameter in _trained(engine.module):
        saved = read(name)
        value = saved.pop("param").to(engine.device)
        _check_shape(name, value, partitions.full_shape(parameter))
        safe_set_full_fp32_param(parameter, value)
        for key, state in saved.items():
            if state.dim():
                safe_set_full_optimizer_state(parameter, state.to(engine.device), key)
        partitions.set_model_copy(parameter, value)
    _load_buffers(engine.module, read)
    partitions.refresh()


class _Partitions(Protocol):
    """Where a ZeRO stage keeps its fp32 weights and optimizer state."""

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]: ...
    def make_state(self, read: Read) -> None: ...
    def full_shape(self, parameter: nn.Parameter) -> torch.Size: ...
    def set_model_copy(self, parameter: nn.Parameter, value: Tensor) -> None: ...
    def refresh(self) -> None: ...


def _partitions(engine: Any) -> _Partitions:
    return _Zero3(engine) if engine.zero_optimization_stage() == 3 else _Zero12(engine)


class _Zero12:
    """ZeRO-1 and -2: one flat fp32 partition a parameter group; the model's copy is whole on every rank."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        self._flats = _Flats(engine, self._zero.bit16_groups, self._zero.single_partition_of_fp32_groups)
        if self._flats.have_state():
            self._link()

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return self._flats.state_of(parameter)

    def make_state(self, read: Read) -> None:
        self._flats.make_state(read)
        if self._flats.have_state():
            self._link()

    def full_shape(self, parameter: nn.Parameter) -> torch.Size:
        return parameter.shape

    def set_model_copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.copy_(value)

    def refresh(self) -> None:
        """Nothing is left to do: every model copy was set."""

    def _link(self) -> None:
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()


class _Zero3:
    """ZeRO-3: one flat fp32 partition a sub-group of parameters; the model's copy is sharded too."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        self._flats = _Flats(engine, self._zero.fp16_groups, self._zero.fp32_partitioned_groups_flat)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return self._flats.state_of(parameter)

    def make_state(self, read: Read) -> None:
        self._flats.make_state(read)

    def full_shape(self, parameter: nn.Parameter) -> torch.Size:
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        return shape

    def set_model_copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    def refresh(self) -> None:
        """Bring the small parameters that stay gathered up to date, as DeepSpeed does after a step."""
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)


class _Flats:
    """The flat fp32 partitions of this rank, the parameters each is of, and the optimizer's state for it."""

    def __init__(self, engine: Any, groups: list[list[nn.Parameter]], flats: list[Tensor]) -> None:
        self._state = engine.optimizer.optimizer.state
        self._names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
        self._groups = list(zip(groups, flats, strict=True))
        self._flat_of = {id(parameter): flat for group, flat in self._groups for parameter in group}

    def have_state(self) -> bool:
        """False before the first step, and after loading a checkpoint of before it."""
        return all(self._state.get(flat) for _, flat in self._groups)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return dict(self._state.get(self._flat_of[id(parameter)], {}))

    def make_state(self, read: Read) -> None:
        """State in the shape of the saved one, for every partition: zeros to be set, and its scalars."""
        self._state.clear()
        for group, flat in self._groups:
            saved = read(self._names[id(group[0])])
            del saved["param"]
            if saved:
                self._state[flat] = {k: torch.zeros_like(flat) if v.dim() else v.clone() for k, v in saved.items()}


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _named_buffers(model: nn.Module, is_main: bool) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, buffer in _persistent_buffers(model):
        yield name, {"param": buffer.detach().cpu()} if is_main else {}


def _load_buffers(model: nn.Module, read: Read) -> None:
    for name, buffer in _persistent_buffers(model):
        value = read(name)["param"]
        _check_shape(name, value, buffer.shape)
        buffer.copy_(value)


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of a model's state dict."""
    saved = model.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor laid out as the parameter is; a scalar stays as it is."""
    if isinstance(parameter, DTensor) and value.dim():
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def _check_shape(name: str, saved: Tensor, expected: torch.Size) -> None:
    if saved.shape != expected:
        raise ValueError(
            f"parameter {name} has shape {tuple(saved.shape)} in the checkpoint and {tuple(expected)} in the model: "
            "it is of another model"
        )
