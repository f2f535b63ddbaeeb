"""The one place that knows processes, devices and engines: it drives accelerate and DeepSpeed for the loop.

A step's loss is a sum of shares over microbatches and ranks. DDP and ZeRO average gradients over ranks, so
`backward` multiplies each share by the world size; accumulation is held here and is 1 for both libraries.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llmtrain.protocols import Counts, Metrics
from llmtrain.system.device import separate_allocations
from llmtrain.train.engines import state as engine_state
from llmtrain.train.engines.capabilities import CAPABILITIES, ENGINES, NEED_CUDA, Engine
from llmtrain.train.engines.launch import check_deepspeed, check_environment, check_outcome, cpu_threads, is_on
from llmtrain.train.engines.watchdog import Watchdog
from llmtrain.train.engines.whole_weights import whole_weights
from llmtrain.train.optim import make_state

Precision = Literal["fp32", "bf16", "fp16"]

ZERO_STAGES: dict[int, Engine] = {1: "zero1", 2: "zero2", 3: "zero3"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BACKSTOP_SECONDS = 60  # the process group's own timeout comes this much after the watchdog's, which can name ranks

_FINISHED: list[Runtime] = []
"""What has ended training, kept with its model until the process ends: freeing the last of them would free the process
group, whose destructor holds the GIL while it joins a thread that may be waiting for the GIL (gloo, torch 2.13)."""


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did."""

    applied: bool  # False: a loss or gradient was not finite, and nothing changed
    grad_norm: float  # global L2 norm before clipping; inf or nan where it was not applied


class Runtime:
    """One process among those that train together. `engine`, `device`, `rank`, `world_size` are known here only."""

    def __init__(
        self,
        *,
        precision: Precision,
        max_grad_norm: float | None,
        seed: int,
        timeout_minutes: float,
        trackers: Sequence[str] = (),
        run_dir: Path | None = None,
    ) -> None:
        """Join the other processes. Raises ValueError where the launch would quietly be something else."""
        has_accelerator = torch.accelerator.is_available()
        check_environment(os.environ, precision=precision, has_accelerator=has_accelerator)
        threads = cpu_threads(os.environ)  # before accelerate writes there too
        _check_trackers(trackers)
        self._precision, self._max_grad_norm, self._seed = precision, max_grad_norm, seed
        self._timeout = timedelta(minutes=timeout_minutes)
        self._trackers, self._run_dir = trackers, run_dir
        self._accelerator = self._join(has_accelerator, trackers)
        self.engine: Engine = _engine(self._accelerator)
        self.device: torch.device = self._accelerator.device
        self.dtype = DTYPES[precision]
        self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
        self.is_main = self.rank == 0
        check_outcome(os.environ, engine=self.engine, world_size=self.world_size)
        if precision == "fp16" and self.device.type == "cpu":
            raise ValueError("train.precision=fp16 needs a GPU: a CPU would quietly train in fp32; use fp32 or bf16")
        if self.device.type == "cpu" and threads is not None:
            torch.set_num_threads(threads)
        if self.engine in ZERO_STAGES.values():
            self._configure_deepspeed()
        self._finite = torch.ones((), device=self.device)
        self._step_finite = self._finite > 0
        # Sums are taken in float64, which MPS lacks; one process needs no device for them.
        self._sum_device = self.device if self.world_size > 1 else torch.device("cpu")
        self._watchdog: Watchdog | None = None
        if self.world_size > 1:
            store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._watchdog = Watchdog(store, self.rank, self.world_size, self._timeout.total_seconds())
            self.barrier()  # from here on every rank has published its count

    def start_trackers(self, project: str) -> None:
        """Open the trackers, which write into the run's folder and so wait until it is known to be this run's."""
        if self._trackers and self.is_main:
            self._accelerator.init_trackers(
                project, init_kwargs=_tracker_settings(self._trackers, self._run_dir or Path())
            )

    def require(self, features: Mapping[str, bool]) -> None:
        """Raise ValueError where a feature that is on does not work under this engine or precision."""
        for feature in (name for name, on in features.items() if on):
            reason = CAPABILITIES[feature][self.engine]
            if feature == "ema" and self.engine in ("zero1", "zero2") and self._precision != "fp32":
                reason = f"the model's own weights are {self._precision} there, and the average would be of those"
            if reason is not None:
                able = [engine for engine in ENGINES if CAPABILITIES[feature][engine] is None]
                raise ValueError(f"{feature} does not work under {self.engine}: {reason}; use {' or '.join(able)}")
            if feature in NEED_CUDA and self.device.type != "cuda":
                raise ValueError(f"{feature} needs an NVIDIA GPU, this is {self.device.type}")

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(line, flush=True)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Hand the model (one module that holds everything trainable) and its optimizer to the engine."""
        self._arrive("prepare")
        prepared, wrapped = self._accelerator.prepare(model, optimizer)
        self._optimizer = optimizer  # `wrapped` without accelerate's wrapper
        self._module: nn.Module = prepared if self.engine == "fsdp2" else model
        self._prepared = prepared
        if self._is_deepspeed:
            for group in {prepared.data_parallel_group, prepared.seq_data_parallel_group}:
                dist.distributed_c10d._set_pg_timeout(self._backstop, group)
        return prepared, wrapped

    def make_state(self) -> None:
        """Make the optimizer's state before anything comes and goes in memory.

        Made in the first step, it would lie in the gaps between what that step frees, and hold them open for good.
        """
        if not self._is_deepspeed:
            with separate_allocations():
                make_state(self._optimizer)

    def seed_step(self, step: int) -> None:
        """Seed torch's generators (dropout) as a pure function of (seed, step, rank): nothing to save or restore."""
        digest = hashlib.blake2b(f"{self._seed}:{step}:{self.rank}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def set_lr(self, optimizer: Optimizer, lrs: Sequence[float]) -> None:
        """Set the learning rate of each parameter group for the step to come."""
        assert len(lrs) == len(optimizer.param_groups)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def sum_counts(self, counts: Sequence[Counts], stop: bool) -> tuple[dict[str, float], bool]:
        """Denominators summed over microbatches and ranks, and whether any rank asks to stop.

        Raises ValueError where a total is zero: the step would train on nothing.
        """
        names = sorted(counts[0])
        sums = [sum(count[name] for count in counts) for name in names]
        *totals, stops = self._summed("the start of a step", [*sums, float(stop)])
        for name, total in zip(names, totals, strict=True):
            if total <= 0 and not stops:
                raise ValueError(f"a step has no {name} to train on, over all ranks: look at the loss mask of the data")
        return dict(zip(names, totals, strict=True)), stops > 0

    def backward(self, model: nn.Module, share: Tensor, last: bool) -> None:
        """Add the gradient of a microbatch's share; `last` marks the step's last microbatch.

        Where any share of any rank is not finite the last one is made NaN on every rank, and so is a gradient: every
        engine drops the step.
        """
        self._arrive("backward")
        self._finite = self._finite * torch.isfinite(share.detach()).to(self._finite.dtype)
        if last:
            self._step_finite = self._reduced(self._finite, dist.ReduceOp.MIN) > 0
            share = share * torch.where(self._step_finite, 1.0, math.nan)
            self._finite = torch.ones_like(self._finite)
        scaled = share * self.world_size
        if self._is_deepspeed:
            engine: Any = model
            engine.set_gradient_accumulation_boundary(last)
            engine.backward(scaled, scale_wrt_gas=False)
            return
        with nullcontext() if last else self._accelerator.no_sync(model):
            self._accelerator.backward(scaled)

    def step(self, model: nn.Module, optimizer: Optimizer) -> StepResult:
        """Clip and step, unless a gradient is not finite; gradients are gone after it in either case."""
        self._arrive("step")
        if self._is_deepspeed:
            engine: Any = model
            engine.step()  # clips by `gradient_clipping`, and skips by itself
            return StepResult(engine.was_step_applied(), float(engine.get_global_grad_norm()))
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        if not self._step_finite:
            grads[0].fill_(math.nan)  # a clamp in the last share may have kept its NaN from every gradient
        scaler = self._accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        norm = engine_state.whole(get_total_norm(grads))
        grad_norm = float(norm)
        applied = math.isfinite(grad_norm)
        if applied and self._max_grad_norm is not None and grad_norm > self._max_grad_norm:
            clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        if applied or scaler is not None:  # the scaler skips by itself, and lowers its scale
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepResult(applied, grad_norm)

    def sum_metrics(self, metrics: Sequence[Metrics]) -> dict[str, float]:
        """Shares summed over microbatches and ranks; what a microbatch does not tell of adds nothing."""
        self._arrive("sum_metrics")
        names = sorted(set().union(*metrics))
        nothing = torch.zeros((), device=self.device)
        shares = torch.stack([torch.stack([part.get(name, nothing) for part in metrics]) for name in names])
        sums = shares.to(self._sum_device).double().sum(dim=1)
        return dict(zip(names, self._reduced(sums, dist.ReduceOp.SUM).tolist(), strict=True))

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks."""
        return self._summed("sum_floats", values)

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's values, in the order of ranks; equally many on each."""
        self._arrive("gather_floats")
        mine = torch.tensor(values, dtype=torch.float64, device=self._sum_device)
        rows = [torch.empty_like(mine) for _ in range(self.world_size)] if self.world_size > 1 else [mine]
        if self.world_size > 1:
            dist.all_gather(rows, mine)
        return [row.tolist() for row in rows]

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        """Every rank's values, (elements,), as many as each has, on the CPU of the main process; none on the others."""
        if self.world_size == 1:
            return [values.cpu()]
        sizes = [int(size) for (size,) in self.gather_floats([values.numel()])]
        mine = torch.zeros(max(1, *sizes), dtype=values.dtype, device=self.device)
        mine[: values.numel()] = values
        rows = [torch.empty_like(mine) for _ in sizes] if self.is_main else []
        dist.gather(mine, rows or None)
        return [row[:size].cpu() for row, size in zip(rows, sizes, strict=False)]

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """With the module's weights whole, to be called as a plain one, as often as this rank needs. Collective."""
        self._arrive("gathered")
        return whole_weights(self._prepared, module) if self.engine == "zero3" else nullcontext()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self._summed("any", [float(flag)])[0] > 0

    def barrier(self) -> None:
        """Wait for every rank."""
        self._summed("barrier", [0.0])

    def named_state(self, model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Every trained parameter and persistent buffer by name: `param`, and its optimizer state. Collective.

        Full tensors on the CPU on the main process, weights and their state in fp32; the others walk along and get
        empty dictionaries.
        """
        self._arrive("named_state")
        if self._is_deepspeed:
            return engine_state.zero_named_state(model, self.is_main)
        return engine_state.named_state(self._module, optimizer, self.is_main)

    def load_named_state(
        self, model: nn.Module, optimizer: Optimizer, read: Callable[[str], dict[str, Tensor]]
    ) -> None:
        """Set trained parameters, buffers and optimizer state to what `read(name)` gives, to the bit. Collective."""
        self._arrive("load_named_state")
        if self._is_deepspeed:
            engine_state.load_zero_named_state(model, read)
        else:
            with separate_allocations():
                engine_state.load_named_state(self._module, optimizer, read)
        self.barrier()

    def scaler_state(self) -> dict[str, Any] | None:
        """State of the fp16 loss scaler; None in other precisions."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler is not None else None

    def load_scaler_state(self, state: Mapping[str, Any] | None) -> None:
        """Take over a saved loss scale, where both runs are in fp16."""
        if state is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(state))

    def track(self, row: Mapping[str, float], step: int) -> None:
        """Send a row of metrics to the trackers."""
        if self.is_main:
            self._accelerator.log({key: value for key, value in row.items() if key != "step"}, step=step)

    def finish(self, *, leave: bool = True) -> None:
        """Close the trackers and leave the other processes, or wait for them and stay for another runtime."""
        if not leave:
            self.barrier()
        if self._watchdog is not None:
            self._watchdog.stop()
        if leave:
            self._accelerator.end_training()
            _FINISHED.append(self)
            return
        for tracker in self._accelerator.trackers:
            tracker.finish()
        AcceleratorState._reset_state()  # what it says of precision and engine is of this run

    @property
    def shards_parameters(self) -> bool:
        """Whether the engine gathers a module's parameters only around that module's own call."""
        return self.engine in ("zero3", "fsdp2")

    @property
    def takes_partial_losses(self) -> bool:
        """Whether a loss may reach some parameters only: other engines wait for the gradients of all."""
        return self.engine == "single"

    @property
    def _is_deepspeed(self) -> bool:
        return self.engine in ZERO_STAGES.values()

    @property
    def _backstop(self) -> timedelta:
        return self._timeout + timedelta(seconds=BACKSTOP_SECONDS)

    def _join(self, has_accelerator: bool, trackers: Sequence[str]) -> Accelerator:
        if not has_accelerator:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
        on_cpu_group = not has_accelerator and "LOCAL_RANK" in os.environ
        deepspeed = is_on(os.environ, "ACCELERATE_USE_DEEPSPEED")
        if deepspeed:
            os.environ.setdefault("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false")
        accelerator = Accelerator(
            cpu=not has_accelerator and not deepspeed,
            mixed_precision="no" if self._precision == "fp32" else self._precision,
            gradient_accumulation_steps=1,
            log_with=list(trackers) or None,
            project_dir=self._run_dir,
            kwargs_handlers=[
                InitProcessGroupKwargs(backend="gloo" if on_cpu_group else None, timeout=self._backstop),
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )
        unset_hf_deepspeed_config()  # else transformers would make models in shards, each with other weights
        return accelerator

    def _configure_deepspeed(self) -> None:
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # its own calls
        config = self._accelerator.state.deepspeed_plugin.deepspeed_config
        check_deepspeed(config, max_grad_norm=self._max_grad_norm, precision=self._precision)
        config["gradient_clipping"] = self._max_grad_norm or 0.0  # 0 is off
        config["gradient_accumulation_steps"] = config["train_micro_batch_size_per_gpu"] = 1
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        if self._precision == "bf16":
            config["bf16"]["check_grad_overflow"] = True  # else a step with non-finite gradients is applied

    def _arrive(self, place: str) -> None:
        if self._watchdog is not None:
            self._watchdog.arrive(place)

    def _summed(self, place: str, values: Sequence[float]) -> list[float]:
        self._arrive(place)
        summed: list[float] = self._reduced(
            torch.tensor(values, dtype=torch.float64, device=self._sum_device), dist.ReduceOp.SUM
        ).tolist()
        return summed

    def _reduced(self, tensor: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(tensor, op)
        return tensor


def _engine(accelerator: Accelerator) -> Engine:
    """What accelerate made of the launch. Raises ValueError for an engine that is not supported."""
    kind = accelerator.distributed_type
    if kind == DistributedType.NO:
        return "single"
    if kind == DistributedType.FSDP:
        return "fsdp2"
    if kind == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        if stage not in ZERO_STAGES:
            raise ValueError(
                f"zero_stage: {stage} in DeepSpeed's configuration is not supported: use 1, 2 or 3, or DDP"
            )
        return ZERO_STAGES[stage]
    if kind in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU):
        return "ddp"
    raise ValueError(f"accelerate's distributed_type {kind.value} is not supported: use one of {', '.join(ENGINES)}")


def _check_trackers(trackers: Sequence[str]) -> None:
    for tracker in trackers:
        spec = find_spec(tracker)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            raise ValueError(f"log.trackers names {tracker}, which is not installed: pip install {tracker}")


def _tracker_settings(trackers: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Settings that make trackers write into the run's folder, unless their own environment says otherwise."""
    if "wandb" in trackers and "WANDB_API_KEY" not in os.environ and not (Path.home() / ".netrc").exists():
        os.environ.setdefault("WANDB_MODE", "offline")  # else it would wait for a key to be typed
    if "mlflow" in trackers:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    return {"wandb": {"dir": str(folder)}}
