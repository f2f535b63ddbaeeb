"""The one place that knows processes, devices and engines: it drives accelerate and DeepSpeed for the loop.

A step's loss is a sum of shares over microbatches and ranks. DDP and ZeRO average gradients over ranks, so
`backward` multiplies each share by the world size; accumulation is held here and is 1 for both libraries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from llmtrain.objective import Counts, Metrics
from llmtrain.train import engine_state

Engine = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did."""

    applied: bool  # False: loss or gradient was not finite, nothing changed
    grad_norm: float  # global L2 norm before clipping


class Runtime:
    """One process among those that train together."""

    def __init__(
        self,
        *,
        precision: Literal["fp32", "bf16", "fp16"],
        max_grad_norm: float | None,
        seed: int,
        timeout_minutes: float,
        trackers: Sequence[str] = (),
        project: str = "",
        run_dir: Path | None = None,
    ) -> None:
        self._max_grad_norm, self._seed = max_grad_norm, seed
        self._accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_steps=1,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        )
        self.engine: Engine = "ddp" if self._accelerator.distributed_type != DistributedType.NO else "single"
        self.device = self._accelerator.device
        self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
        self.is_main = self.rank == 0
        self._finite = torch.ones((), device=self.device)

    def require(self, features: Mapping[str, bool]) -> None:
        """Raise ValueError where a feature that is on does not work under this engine."""

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(line, flush=True)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Hand the model (one module that holds everything trainable) and its optimizer to the engine."""
        prepared, wrapped = self._accelerator.prepare(model, optimizer)
        return prepared, wrapped

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The module that was prepared."""
        unwrapped: nn.Module = self._accelerator.unwrap_model(model)
        return unwrapped

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
        *totals, stops = self.sum_floats([*(sum(count[name] for count in counts) for name in names), float(stop)])
        for name, total in zip(names, totals, strict=True):
            if total <= 0 and not stops:
                raise ValueError(f"a step has no {name} to train on, over all ranks: look at the loss mask of the data")
        return dict(zip(names, totals, strict=True)), stops > 0

    def backward(self, model: nn.Module, share: Tensor, last: bool) -> None:
        """Add the gradient of a microbatch's share; `last` marks the step's last microbatch.

        Where any share of any rank is not finite the last one is made NaN on every rank, so that every gradient
        is, and every engine drops the step.
        """
        self._finite = self._finite * torch.isfinite(share.detach()).to(self._finite.dtype)
        if last:
            share = share * torch.where(self._reduced(self._finite, dist.ReduceOp.MIN) > 0, 1.0, math.nan)
            self._finite = torch.ones_like(self._finite)
        with nullcontext() if last else self._accelerator.no_sync(model):
            self._accelerator.backward(share * self.world_size)

    def step(self, model: nn.Module, optimizer: Optimizer) -> StepResult:
        """Clip and step, unless a gradient is not finite; gradients are gone after it in either case."""
        self._accelerator.unscale_gradients(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        grad_norm = float(norm)
        applied = math.isfinite(grad_norm)
        if applied and self._max_grad_norm is not None and grad_norm > self._max_grad_norm:
            clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        if applied or self._accelerator.scaler is not None:  # the scaler skips by itself, and lowers its scale
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepResult(applied, grad_norm)

    def sum_metrics(self, metrics: Sequence[Metrics]) -> dict[str, float]:
        """Shares summed over microbatches and ranks."""
        names = sorted(metrics[0])
        sums = torch.stack([torch.stack([part[name].double() for part in metrics]).sum() for name in names])
        return dict(zip(names, self._reduced(sums, dist.ReduceOp.SUM).tolist(), strict=True))

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks."""
        summed: list[float] = self._reduced(self._tensor(values), dist.ReduceOp.SUM).tolist()
        return summed

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's values, in the order of ranks; equally many on each."""
        mine = self._tensor(values)
        if self.world_size == 1:
            return [mine.tolist()]
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(rows, mine)
        return [row.tolist() for row in rows]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum_floats([float(flag)])[0] > 0

    def barrier(self) -> None:
        """Wait for every rank."""
        self.any(False)

    def named_state(self, model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Every parameter and persistent buffer by name: `param`, and its optimizer state. Collective.

        Full tensors on the CPU on the main process; the others walk along and get empty dictionaries.
        """
        yield from engine_state.named_state(self.unwrap(model), optimizer)

    def load_named_state(
        self, model: nn.Module, optimizer: Optimizer, read: Callable[[str], dict[str, Tensor]]
    ) -> None:
        """Set every parameter, buffer and optimizer state to what `read(name)` gives, to the bit. Collective."""
        engine_state.load_named_state(self.unwrap(model), optimizer, read)

    def scaler_state(self) -> dict[str, Any] | None:
        """State of the fp16 loss scaler; None in other precisions."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler is not None else None

    def load_scaler_state(self, state: Mapping[str, Any] | None) -> None:
        """Take over a saved loss scale, where both runs are in fp16."""
        if state is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(state))

    def track(self, row: Mapping[str, float], step: int) -> None:
        """Send a row to the trackers."""

    def finish(self) -> None:
        """Close the trackers and leave the process group."""
        self._accelerator.end_training()

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _reduced(self, tensor: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(tensor, op)
        return tensor
