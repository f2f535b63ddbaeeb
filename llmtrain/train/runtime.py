"""The processes that train together: their collectives, their engine, their trackers.

A step's loss is a sum of shares over microbatches and ranks. An engine (`train/engines`) adds, clips and applies the
gradients and reads and writes weights for checkpoints. Accumulation is ours: accelerate and DeepSpeed believe it is 1.
"""

from __future__ import annotations

import hashlib
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import Optimizer

from llmtrain.protocols import Counts, Metrics, Sharding
from llmtrain.system.ending import Ending, Kind, LaunchEnded
from llmtrain.system.exit_codes import EXIT_FAILED, EXIT_USER_ERROR
from llmtrain.system.files import one_line
from llmtrain.system.precision import DTYPES
from llmtrain.system.terminal import say
from llmtrain.train.engines.base import Engine, EngineSettings, NamedState, Precision, ReadState, StepResult
from llmtrain.train.engines.launch import check_environment, check_outcome, cpu_threads, start_accelerator
from llmtrain.train.engines.state import checked_read, checked_state, trained_parameters
from llmtrain.train.engines.table import ENGINES, check_features, launched_engine, refusal
from llmtrain.train.engines.watchdog import Watchdog
from llmtrain.train.pace import SlowRank, SlowRanks, Stopwatch
from llmtrain.train.tracking import check_trackers, configure_trackers

PATIENCE_SECONDS = 10  # after a collective fails, until it is known which rank's end that was
BACKSTOP_SECONDS = 60  # the process group's own timeout comes this much after the watchdog's, which can name ranks

_FINISHED: list[Runtime] = []
"""What has ended training, kept with its model until the process ends: freeing the last of them would free the process
group, whose destructor holds the GIL while it joins a thread that may be waiting for the GIL (gloo, torch 2.13)."""


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
        """Join the other processes. Raises ValueError if the launch would quietly be something else."""
        has_accelerator = torch.accelerator.is_available()
        check_environment(os.environ, precision=precision, has_accelerator=has_accelerator)
        threads = cpu_threads(os.environ)  # before accelerate writes there too
        check_trackers(trackers)
        self._precision, self._seed = precision, seed
        self._trackers, self._run_dir = trackers, run_dir
        timeout = timedelta(minutes=timeout_minutes)
        settings = EngineSettings(precision, max_grad_norm, timeout + timedelta(seconds=BACKSTOP_SECONDS))
        self._accelerator = start_accelerator(
            settings, has_accelerator=has_accelerator, trackers=trackers, run_dir=run_dir
        )
        self.engine = launched_engine(self._accelerator)  # its name in the table
        self.device: torch.device = self._accelerator.device
        self.dtype = DTYPES[precision]
        self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
        self.is_main = self.rank == 0
        check_outcome(os.environ, engine=self.engine, world_size=self.world_size)
        if precision == "fp16" and self.device.type == "cpu":
            raise ValueError("train.precision=fp16 needs a GPU: a CPU would quietly train in fp32; use fp32 or bf16")
        if self.device.type == "cpu" and threads is not None:
            torch.set_num_threads(threads)
        self._engine: Engine = ENGINES[self.engine].make(self._accelerator, settings)
        self._finite = torch.ones((), device=self.device)  # 1 while every share of the step so far is finite
        self._step_finite = self._finite > 0
        self._is_last = True  # of the step's microbatches
        # Sums are taken in float64, which MPS lacks; one process needs no device for them.
        self._sum_device = self.device if self.world_size > 1 else torch.device("cpu")
        self._stopwatch = Stopwatch(self._sum_device)
        self._slow_ranks = SlowRanks() if self.is_main and self.world_size > 1 else None
        self._slow_rank: SlowRank | None = None
        self._failure: Exception | None = None  # that this process has announced
        self._watchdog = self._watched(timeout.total_seconds()) if self.world_size > 1 else None
        if self.world_size > 1:
            self.barrier()  # from here on every rank is watched

    @property
    def sharding(self) -> Sharding:
        """What the engine gathers at a time of parameters that it shards."""
        return self._engine.sharding

    @property
    def shards_parameters(self) -> bool:
        """Whether parameters are whole only during a call."""
        return self.sharding != "none"

    @property
    def supports_partial_backward(self) -> bool:
        """Whether a loss may reach some of the parameters only."""
        return self._engine.supports_partial_backward

    def require(self, features: Mapping[str, bool]) -> None:
        """Raise ValueError if a feature that is on does not work under this engine, precision or device."""
        check_features(features, engine=self.engine, precision=self._precision, device_type=self.device.type)

    def refusal(self, feature: str) -> str | None:
        """Why a feature does not work under this engine; None if it does."""
        return refusal(feature, self.engine, self._precision)

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            say(line)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Hand the model (one module that holds everything trainable) and its optimizer to the engine. Collective."""
        self._arrive("prepare")
        self._trained = frozenset(name for name, _ in trained_parameters(model))
        return self._engine.prepare(model, optimizer)

    def make_state(self) -> None:
        """Make the optimizer's state, as if before the first step: a checkpoint without it is refused."""
        self._engine.make_state()

    def seed_step(self, step: int) -> None:
        """Seed torch's generators (dropout) by (seed, step, rank), so that a checkpoint need not hold their state."""
        digest = hashlib.blake2b(f"{self._seed}:{step}:{self.rank}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def set_lr(self, optimizer: Optimizer, lrs: Sequence[float]) -> None:
        """Set the learning rate of each parameter group for the step to come."""
        assert len(lrs) == len(optimizer.param_groups)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def sum_counts(self, counts: Sequence[Counts], stop: bool) -> tuple[dict[str, float], bool]:
        """Denominators summed over microbatches and ranks, and whether any rank asks to stop.

        Raises ValueError if a total is zero: the step would train on nothing.
        """
        names = sorted(counts[0])
        sums = [sum(count[name] for count in counts) for name in names]
        paces = [0.0] * self.world_size
        paces[self.rank] = self._stopwatch.seconds()  # before this step's data are counted
        self._stopwatch.data_is_ready()
        stops, *summed = self._summed("the start of a step", [float(stop), *paces, *sums])
        self._stopwatch.forward_begins()
        paces, totals = summed[: self.world_size], summed[self.world_size :]
        self._slow_rank = self._slow_ranks.add(paces) if self._slow_ranks is not None and min(paces) > 0 else None
        for name, total in zip(names, totals, strict=True):
            if total <= 0 and not stops:
                raise ValueError(f"a step has no {name} to train on, over all ranks: look at the loss mask of the data")
        return dict(zip(names, totals, strict=True)), stops > 0

    def slow_rank(self) -> tuple[str, SlowRank] | None:
        """A rank that all others wait for, and its name, if it is to be named now; on the main process."""
        if self._slow_rank is None:
            return None
        host = "" if self._watchdog is None else f" ({self._watchdog.host_of(self._slow_rank.rank)})"
        return f"rank {self._slow_rank.rank}{host}", self._slow_rank

    @contextmanager
    def microbatch(self, *, last: bool) -> Iterator[None]:
        """What the forward and the backward of a microbatch run in; `last`: it is the step's last one."""
        self._is_last = last
        with self._engine.microbatch(last=last):
            yield

    def backward(self, share: Tensor) -> None:
        """Add the gradient of a microbatch's share. Collective in the step's last microbatch.

        If any share of any rank is not finite, the last one is made NaN on every rank, and so is a gradient: every
        engine drops the step.
        """
        self._arrive("backward")
        self._finite = self._finite * torch.isfinite(share.detach()).to(self._finite.dtype)
        if self._is_last:
            self._stopwatch.forward_ends()
            self._step_finite = self._reduced(self._finite, dist.ReduceOp.MIN) > 0
            share = share * torch.where(self._step_finite, 1.0, math.nan)
            self._finite = torch.ones_like(self._finite)
        self._engine.backward(share)

    def step(self) -> StepResult:
        """Clip and step, unless a gradient is not finite; gradients are gone after it in either case. Collective."""
        self._arrive("step")
        return self._engine.step(self._step_finite)

    def sum_metrics(self, metrics: Sequence[Metrics]) -> dict[str, float]:
        """Shares summed over microbatches and ranks; a metric that a microbatch lacks adds nothing."""
        self._arrive("sum_metrics")
        names = sorted(set().union(*metrics))
        nothing = torch.zeros((), device=self.device)
        shares = torch.stack([torch.stack([part.get(name, nothing) for part in metrics]) for name in names])
        sums = shares.to(self._sum_device).double().sum(dim=1)
        values = self._reduced(sums, dist.ReduceOp.SUM).tolist()
        self._stopwatch.step_ends()
        return dict(zip(names, values, strict=True))

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks."""
        return self._summed("sum_floats", values)

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's values, in the order of ranks; each rank gives the same number of values."""
        self._arrive("gather_floats")
        mine = torch.tensor(values, dtype=torch.float64, device=self._sum_device)
        rows = [torch.empty_like(mine) for _ in range(self.world_size)] if self.world_size > 1 else [mine]
        if self.world_size > 1:
            dist.all_gather(rows, mine)
        return [row.tolist() for row in rows]

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        """Every rank's values, (elements,), of any length, on the main process's CPU; an empty list on the others."""
        if self.world_size == 1:
            return [values.cpu()]
        sizes = [int(size) for (size,) in self.gather_floats([values.numel()])]
        mine = torch.zeros(max(1, *sizes), dtype=values.dtype, device=self.device)
        mine[: values.numel()] = values
        rows = [torch.empty_like(mine) for _ in sizes] if self.is_main else []
        dist.gather(mine, rows or None)
        return [row[:size].cpu() for row, size in zip(rows, sizes, strict=False)]

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """With the module's weights whole, so that each rank may call it as often as it needs. Collective on entry."""
        self._arrive("gathered")
        return self._engine.gathered(module)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self._summed("any", [float(flag)])[0] > 0

    def barrier(self) -> None:
        """Wait for every rank."""
        self._summed("barrier", [0.0])

    def named_state(self) -> NamedState:
        """Every trained parameter and persistent buffer by name: `param`, and its optimizer state. Collective.

        Full tensors on the CPU on the main process, weights and their state in fp32. The other ranks get empty
        dictionaries: they iterate only to join the collectives. Raises ValueError, at the end of the iteration, if a
        trained parameter has no optimizer state.
        """
        self._arrive("named_state")
        named = self._engine.named_state(is_main=self.is_main)
        return self._with_progress(checked_state(named, self._trained) if self.is_main else named)

    def _with_progress(self, named: NamedState) -> NamedState:
        """The same: whoever writes it is not stuck, however slow the disk is."""
        for each in named:
            yield each
            if self._watchdog is not None:
                self._watchdog.progress()

    def load_named_state(self, read: ReadState) -> None:
        """Set trained parameters, buffers and optimizer state to what `read(name)` returns, to the bit. Collective.

        Raises ValueError if it returns no optimizer state of a trained parameter.
        """
        self._arrive("load_named_state")
        self._engine.load_named_state(checked_read(read, self._trained))
        self.barrier()

    def scaler_state(self) -> dict[str, Any] | None:
        """State of the fp16 loss scaler; None in other precisions."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler is not None else None

    def load_scaler_state(self, state: Mapping[str, Any] | None) -> None:
        """Take over a saved loss scale, if both runs are in fp16."""
        if state is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(state))

    def start_trackers(self, project: str) -> None:
        """Open the trackers, which write into the run's folder and so wait until it is known to be this run's."""
        if self._trackers and self.is_main:
            init_kwargs = configure_trackers(self._trackers, self._run_dir or Path())
            self._accelerator.init_trackers(project, init_kwargs=init_kwargs)

    def track(self, row: Mapping[str, float], step: int) -> None:
        """Send a row of metrics to the trackers."""
        if self.is_main:
            self._accelerator.log({key: value for key, value in row.items() if key != "step"}, step=step)

    def cause_of(self, error: Exception) -> Exception:
        """The end of another rank, if that is what broke a collective; else the error, of which the others learn."""
        if isinstance(error, LaunchEnded) or error is self._failure:
            return error
        if is_collective_failure(error) and (ending := self.other_ending(PATIENCE_SECONDS)) is not None:
            return LaunchEnded(ending)
        self._failure = error
        is_user_error = isinstance(error, ValueError)
        reason = one_line(error) if is_user_error else f"{type(error).__name__}: {one_line(error)}"
        self.announce("failed", reason, EXIT_USER_ERROR if is_user_error else EXIT_FAILED)
        return error

    def other_ending(self, seconds: float) -> Ending | None:
        """The end of another rank, if one is known within a time."""
        return None if self._watchdog is None else self._watchdog.ending(seconds)

    def announce(self, kind: Kind, reason: str, status: int) -> None:
        """Let the other ranks end with this one, which is about to leave."""
        if self._watchdog is not None:
            self._watchdog.announce(Ending(kind, self.rank, socket.gethostname(), reason, status))

    def finish(self, *, leave: bool = True) -> None:
        """Close the trackers and leave the other processes, all together, or stay for another runtime.

        The main process may still write for as long as it takes. Raises LaunchEnded if a rank is lost meanwhile.
        """
        if self._watchdog is not None:
            self._watchdog.leave_together()
            self._watchdog = None
        if leave:
            self._accelerator.end_training()
            _FINISHED.append(self)
            return
        for tracker in self._accelerator.trackers:
            tracker.finish()
        AcceleratorState._reset_state()  # its precision and engine are this run's

    def _watched(self, timeout_seconds: float) -> Watchdog | None:
        store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        try:
            return Watchdog(store, self.rank, timeout_seconds)
        except OSError as error:
            say(f"warning: rank {self.rank} cannot reach rank 0 ({error}): a rank that is lost or hangs is not named")
            return None

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


def is_collective_failure(error: Exception) -> bool:
    """Whether an error is what gloo or NCCL raises where another rank has left or does not come."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "onnection closed by peer"))
    )
