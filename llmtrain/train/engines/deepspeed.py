"""DeepSpeed's ZeRO-1, -2 and -3, driven by us: accumulation, clipping and precision come from our configuration.

DeepSpeed keeps fp32 weights and optimizer state in flat partitions. Its public `safe_get_*` and
`safe_set_*` reach single parameters in them. What they leave to us in 0.19.8 needs private names, in `_Zero12`,
`_Zero3` and `_Flats` below:

- ZeRO-1 and -2 link optimizer state to parameters once the first parameter group has stepped, so that of the other
  groups is missing: `_link` links it again;
- optimizer state does not exist before the first step: `make_state` makes it;
- setting fp32 weights leaves the model's own copy as it was: `set_model_copy` and `refresh` bring it up to date.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from llmtrain.protocols import Sharding
from llmtrain.train.engines.base import EngineSettings, NamedState, ReadState, StepResult
from llmtrain.train.engines.state import check_shape, load_buffers, named_buffers, trained_parameters

FIRST_STATE = {
    "param": torch.zeros(1),
    "step": torch.zeros(()),
    "exp_avg": torch.zeros(1),
    "exp_avg_sq": torch.zeros(1),
}
"""What `ReadState` gives of a parameter that AdamW has not stepped yet, but for its shape."""


class DeepSpeedEngine:
    """The engine of processes that shard the optimizer's state (ZeRO-1), gradients too (-2), weights too (-3)."""

    supports_partial_backward = False

    def __init__(self, accelerator: Accelerator, settings: EngineSettings) -> None:
        """Raises ValueError if DeepSpeed's configuration contradicts ours."""
        self._accelerator, self._timeout = accelerator, settings.timeout
        is_sharded = accelerator.state.deepspeed_plugin.zero_stage == 3
        self.sharding: Sharding = "modules" if is_sharded else "none"
        configure(accelerator.state.deepspeed_plugin.deepspeed_config, settings)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        prepared, wrapped = self._accelerator.prepare(model, optimizer)
        for group in {prepared.data_parallel_group, prepared.seq_data_parallel_group}:
            dist.distributed_c10d._set_pg_timeout(self._timeout, group)
        self._engine: Any = prepared
        return prepared, wrapped

    def make_state(self) -> None:
        _partitions(self._engine).make_state(lambda name: dict(FIRST_STATE))

    def microbatch(self, *, last: bool) -> AbstractContextManager[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, share: Tensor) -> None:
        self._engine.backward(share * self._accelerator.num_processes, scale_wrt_gas=False)  # it averages over ranks

    def step(self, is_finite: Tensor) -> StepResult:
        self._engine.step()  # clips by `gradient_clipping`, and skips a step with NaN by itself
        return StepResult(self._engine.was_step_applied(), float(self._engine.get_global_grad_norm()))

    def named_state(self, *, is_main: bool) -> NamedState:
        """Gathered one parameter at a time."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        partitions = _partitions(self._engine)
        for name, parameter in trained_parameters(self._engine.module):
            full = {"param": safe_get_full_fp32_param(parameter)}
            for key, value in partitions.state_of(parameter).items():
                full[key] = safe_get_full_optimizer_state(parameter, key) if value.dim() else value.clone()
            yield name, {key: value.detach().cpu() for key, value in full.items()} if is_main else {}
        yield from named_buffers(self._engine.module, is_main)

    @torch.no_grad()
    def load_named_state(self, read: ReadState) -> None:
        engine, partitions = self._engine, _partitions(self._engine)
        partitions.make_state(read)
        for name, parameter in trained_parameters(engine.module):
            saved = read(name)
            value = saved.pop("param").to(engine.device)
            check_shape(name, value, partitions.full_shape(parameter))
            partitions.set_master(parameter, value)
            for key, state in saved.items():
                if state.dim():
                    partitions.set_state(parameter, key, state.to(engine.device))
            partitions.set_model_copy(parameter, value)
        load_buffers(engine.module, read)
        partitions.refresh()

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        return _whole_weights(self._engine, module) if self.sharding == "modules" else nullcontext()


def configure(config: dict[str, Any], settings: EngineSettings) -> None:
    """Write into a DeepSpeed configuration what ours decides. Raises ValueError if it says otherwise."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # its own calls
    check_deepspeed(config, max_grad_norm=settings.max_grad_norm, precision=settings.precision)
    config["gradient_clipping"] = settings.max_grad_norm or 0.0  # 0 is off
    config["gradient_accumulation_steps"] = config["train_micro_batch_size_per_gpu"] = 1
    config["data_types"] = {"grad_accum_dtype": "fp32"}
    config["zero_force_ds_cpu_optimizer"] = False  # its own AdamW keeps other state than torch's
    if settings.precision == "bf16":
        config["bf16"]["check_grad_overflow"] = True  # else a step with non-finite gradients is applied


def check_deepspeed(config: Mapping[str, object], *, max_grad_norm: float | None, precision: str) -> None:
    """Raise ValueError if a DeepSpeed configuration sets explicitly what ours decides, and differently."""
    clipping = config.get("gradient_clipping", "auto")
    if clipping != "auto" and clipping != (max_grad_norm or 0.0):
        raise ValueError(
            f"gradient_clipping: {clipping} in DeepSpeed's configuration, but optim.max_grad_norm is {max_grad_norm}: "
            "remove it there"
        )
    accumulation = config.get("gradient_accumulation_steps", "auto")
    if accumulation not in ("auto", 1):
        raise ValueError(
            f"gradient_accumulation_steps: {accumulation} in DeepSpeed's configuration: accumulation follows from "
            "train.global_batch_tokens and train.microbatch_tokens; remove it there"
        )
    for dtype in ("bf16", "fp16"):
        section = config.get(dtype)
        enabled = section.get("enabled", False) if isinstance(section, Mapping) else False
        if enabled is True and dtype != precision:
            raise ValueError(
                f"{dtype} is enabled in DeepSpeed's configuration, but train.precision is {precision}: remove it there"
            )
    zero = config.get("zero_optimization")
    for part in ("offload_optimizer", "offload_param"):
        offload = zero.get(part) if isinstance(zero, Mapping) else None
        device = offload.get("device", "none") if isinstance(offload, Mapping) else "none"
        if device not in ("none", "cpu"):
            raise ValueError(f"{part}_device: {device}: only offloading to the CPU is supported, set it to cpu or none")
        if device == "cpu" and isinstance(zero, Mapping) and zero.get("stage") != 3:
            raise ValueError(f"{part}_device: cpu needs zero_stage: 3 (recipes/accelerate/zero3_offload.yaml)")
    for section_name, ours in (("optimizer", "optim"), ("scheduler", "optim.schedule")):
        if section_name in config:
            raise ValueError(f"DeepSpeed's configuration has a section {section_name}: remove it, {ours} decides")


class _Partitions(Protocol):
    """Where a ZeRO stage keeps its fp32 weights and optimizer state."""

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]: ...
    def make_state(self, read: ReadState) -> None: ...
    def full_shape(self, parameter: nn.Parameter) -> torch.Size: ...
    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None: ...  # in fp32, whole
    def set_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None: ...  # whole
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

    def make_state(self, read: ReadState) -> None:
        self._flats.make_state(read)
        if self._flats.have_state():
            self._link()

    def full_shape(self, parameter: nn.Parameter) -> torch.Size:
        return parameter.shape

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value)

    def set_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, key)

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

    def make_state(self, read: ReadState) -> None:
        self._flats.make_state(read)

    def full_shape(self, parameter: nn.Parameter) -> torch.Size:
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        return shape

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(parameter, _shard(parameter, value))

    def set_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, _shard(parameter, value), key)

    def set_model_copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    def refresh(self) -> None:
        """Bring the small parameters that stay gathered up to date, as DeepSpeed does after a step."""
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)


def _shard(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor, (elements,): equally many on each rank, the last filled up with zeros.

    DeepSpeed's own `safe_set_full_*` leave the filling out, and fail unless the ranks divide the elements.
    """
    size = parameter.ds_tensor.numel()
    start = size * dist.get_rank(parameter.ds_process_group)
    shard = value.flatten()[start : start + size]
    return nn.functional.pad(shard, (0, size - shard.numel()))


class _Flats:
    """The flat fp32 partitions of this rank, the parameters each is of, and the optimizer's state for it."""

    def __init__(self, engine: Any, groups: list[list[nn.Parameter]], flats: list[Tensor]) -> None:
        self._state = engine.optimizer.optimizer.state
        self._is_fused = bool(engine.optimizer.optimizer.param_groups[0]["fused"])
        self._names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
        self._groups = list(zip(groups, flats, strict=True))
        self._flat_of = {id(parameter): flat for group, flat in self._groups for parameter in group}

    def have_state(self) -> bool:
        """False until `make_state`, or the first step."""
        return all(self._state.get(flat) for _, flat in self._groups)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return dict(self._state.get(self._flat_of[id(parameter)], {}))

    def make_state(self, read: ReadState) -> None:
        """State in the shape of the saved one, for every partition: zeros to be set, and its scalars."""
        self._state.clear()
        for group, flat in self._groups:
            saved = read(self._names[id(group[0])])
            del saved["param"]
            self._state[flat] = {k: torch.zeros_like(flat) if v.dim() else self._count(v) for k, v in saved.items()}

    def _count(self, saved: Tensor) -> Tensor:
        """A step count, where the optimizer keeps it."""
        return saved.to(self._groups[0][1].device if self._is_fused else "cpu", copy=True)


@contextmanager
def _whole_weights(engine: Any, module: nn.Module) -> Iterator[None]:
    """The parameters of a module that ZeRO-3 shards, whole; they may be read, not written. Collective on entry.

    DeepSpeed gathers a module's weights around that module's own call, which every rank has to make in the same order.
    Ranks whose responses end at different lengths do not, and would wait for each other without end. So all weights
    are gathered at once, and until they are sharded again DeepSpeed's hooks are out of the way: they would gather and
    free weights at each call, and compare the calls of all ranks. Then the hooks are put back, and training continues.
    """
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    engine.empty_partition_cache()  # what is gathered ahead of its use would be taken for whole
    offload = engine.optimizer.parameter_offload
    hooks = [offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks]
    with GatheredParameters(module.parameters()), _without_hooks(hooks):
        yield


@contextmanager
def _without_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
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
