"""The training loop: pull a step's microbatches, sum their shares' gradients, step, look, save.

It knows no objective, dataset or model: those come as a BatchSource, an Objective and an nn.Module. What it
owes is that a step is the same however it is split, and that a run resumes as if it had not been stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from llmtrain.config import CheckpointConfig, EvalConfig, LogConfig, TrainConfig
from llmtrain.objective import BatchSource, Objective
from llmtrain.train.checkpoint import Checkpoint, Checkpoints
from llmtrain.train.guard import StepGuard, StopSignal
from llmtrain.train.metrics import RunLog
from llmtrain.train.optim import Ema, shrink_l1
from llmtrain.train.profile import StepProfiler
from llmtrain.train.runtime import Runtime
from llmtrain.train.schedule import Schedule

MAX_ROLLBACKS = 3  # to one checkpoint; a spike that comes back whatever the data is has another cause

Outcome = Literal["finished", "stopped early", "interrupted"]

Evaluate = Callable[[nn.Module, Callable[[], bool]], dict[str, float] | None]
"""(model in eval mode, whether any rank was asked to stop) -> values, `eval_loss` among them; None if stopped."""


class StepBatch(Protocol):
    """What the loop asks of a microbatch."""

    @property
    def sample_ids(self) -> tuple[int, ...]: ...
    def to(self, device: torch.device) -> Any: ...


BatchType = TypeVar("BatchType", bound=StepBatch)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0  # trained, over all ranks
    train_seconds: float = 0.0  # inside optimizer steps, data included
    elapsed_seconds: float = 0.0  # since the start, restarts included
    evaluated_step: int = -1
    best_loss: float | None = None
    evaluations_since_best: int = 0


@dataclass
class Loop(Generic[BatchType]):
    """One run: its parts, and `run()`."""

    runtime: Runtime
    model: nn.Module
    optimizer: Optimizer
    objective: Objective[BatchType]
    source: BatchSource[BatchType]
    schedule: Schedule
    num_steps: int
    evaluate: Evaluate | None
    checkpoints: Checkpoints
    log: RunLog
    stop: StopSignal
    profiler: StepProfiler
    train: TrainConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    logging: LogConfig
    l1: float = 0.0
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)

    def run(self) -> Outcome:
        """Train until the source is finished, patience is out, or a signal asks to stop; save in each case."""
        self._guard = StepGuard(self.train.max_nonfinite_steps, self.train.spike_factor)
        self._saved, self._session_start = (-1, -1), time.perf_counter()
        self._rollbacks = 0
        if (latest := self.checkpoints.latest(self.runtime)) is not None:
            self._restore(latest)
            left = self.num_steps - self.progress.step
            if left < 0:
                raise ValueError(f"the run is at step {self.progress.step} already, past its {self.num_steps} steps")
            self.log.say(f"resumed at step {self.progress.step} from {latest.path}, {left} steps left")
        self.log.resume_at(self.progress.step, self.progress.evaluated_step)
        self._elapsed_before = self.progress.elapsed_seconds
        self._window_tokens, self._window_seconds = 0.0, 0.0
        outcome = self._run()
        self.profiler.close()
        if outcome != "interrupted" and not self._evaluate():
            outcome = "interrupted"  # the last evaluation is owed to whoever resumes
        self._save()
        return outcome

    def _run(self) -> Outcome:
        self.model.train()
        while True:
            if self._due(self.eval.every, at_start=True):
                self._evaluate()
            if self._due(self.checkpoint.every, at_start=self.train.spike_factor is not None):
                self._save()
            if self.eval.patience is not None and self.progress.evaluations_since_best >= self.eval.patience:
                return "stopped early"
            self.profiler.before_step(self.progress.step + 1)
            outcome = self._step()
            self.profiler.after_step(self.progress.step)
            if outcome is not None:
                return outcome

    def _due(self, every: int | None, *, at_start: bool) -> bool:
        step = self.progress.step
        if step == 0:
            return at_start
        return step == self.num_steps or (every is not None and step % every == 0)

    def _step(self) -> Outcome | None:
        """One optimizer step; None where the run goes on."""
        started, before = time.perf_counter(), self.source.state_dict()
        microbatches = self.source.next_step()
        if microbatches is None:
            return "finished"
        self.runtime.seed_step(self.progress.step)
        factor = self.schedule(self.progress.step)
        self.runtime.set_lr(self.optimizer, [factor * group["peak_lr"] for group in self.optimizer.param_groups])
        totals, stop = self.runtime.sum_counts(
            [self.objective.counts(batch) for batch in microbatches], self.stop.requested is not None
        )
        if stop:
            self.source.load_state_dict(before)
            self.log.say(
                f"{self.stop.requested or 'a signal on another rank'}: stopping after {self.progress.step} steps"
            )
            return "interrupted"
        metrics = []
        for i, batch in enumerate(microbatches):
            share, parts = self.objective.loss(self.model, batch.to(self.runtime.device), totals)
            self.runtime.backward(self.model, share, last=i == len(microbatches) - 1)
            metrics.append(parts)
        result = self.runtime.step(self.model, self.optimizer)
        values = self.runtime.sum_metrics(metrics)

        progress = self.progress
        progress.step += 1
        progress.tokens += int(totals["tokens"]) if result.applied else 0
        if not result.applied:
            sample_ids = [sample_id for batch in microbatches for sample_id in batch.sample_ids]
            named = f"{min(sample_ids)} to {max(sample_ids)}" if sample_ids else "of other ranks"
            self.log.say(self._guard.skipped(progress.step, named))
        elif self._guard.spiked(values["loss"]):
            progress.train_seconds += time.perf_counter() - started
            self._roll_back(values["loss"])
            return None
        else:
            if self.l1:
                shrink_l1(self.optimizer, self.l1)
            if self.ema is not None:
                self.ema.update(progress.step)
        seconds = time.perf_counter() - started
        progress.train_seconds += seconds
        self._window_tokens += totals["tokens"]
        self._window_seconds += seconds
        if progress.step % self.logging.every == 0 or progress.step == self.num_steps:
            self._log_step(values, self.optimizer.param_groups[0]["lr"], result.grad_norm)
        return None

    def _log_step(self, values: dict[str, float], lr: float, grad_norm: float) -> None:
        row = self._row() | values | {"lr": lr, "grad_norm": grad_norm, "tokens": self.progress.tokens}
        if self._guard.nonfinite_total:
            row["nonfinite_steps"] = self._guard.nonfinite_total
        self.log.train_row(row, window_tokens=self._window_tokens, window_seconds=self._window_seconds)
        self._window_tokens, self._window_seconds = 0.0, 0.0

    def _row(self) -> dict[str, float | int]:
        progress = self.progress
        progress.elapsed_seconds = self._elapsed_before + time.perf_counter() - self._session_start
        times = {"elapsed_seconds": progress.elapsed_seconds, "train_seconds": progress.train_seconds}
        return {"step": progress.step, **times}

    def _evaluate(self) -> bool:
        """Held-out values of the weights that would be exported, the best saved at once; False where interrupted."""
        progress = self.progress
        if self.evaluate is None or progress.evaluated_step == progress.step:
            return True
        self.model.eval()
        if self.ema is not None:
            self.ema.swap()
        values = self.evaluate(self.model, lambda: self.runtime.any(self.stop.requested is not None))
        if self.ema is not None:
            self.ema.swap()
        self.model.train()
        if values is None:
            return False
        progress.evaluated_step = progress.step
        self.log.eval_row(self._row() | values)
        if progress.best_loss is None or values["eval_loss"] < progress.best_loss:
            progress.best_loss, progress.evaluations_since_best = values["eval_loss"], 0
            if self.checkpoint.best:
                self._save(best=True)
        else:
            progress.evaluations_since_best += 1
        return True

    def _save(self, best: bool = False) -> None:
        if self._saved == (self.progress.step, self.progress.evaluated_step):
            return
        self._row()  # brings elapsed_seconds up to date
        state = {
            "progress": asdict(self.progress),
            "source": self.source.state_dict(),
            "guard": self._guard.state_dict(),
            "scaler": self.runtime.scaler_state(),
        }
        extra = {} if self.ema is None else {"ema": self.ema.average}
        self.checkpoints.save(
            self.runtime, self.progress.step, self.model, self.optimizer, state, extra=extra, best=best
        )
        self._saved, self._rollbacks = (self.progress.step, self.progress.evaluated_step), 0

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.runtime.load_named_state(self.model, self.optimizer, checkpoint.read_parameter)
        if self.ema is not None:
            self.ema.load(checkpoint.read_all("ema"))
        state = checkpoint.state
        self.progress = Progress(**state["progress"])
        self.source.load_state_dict(state["source"])
        self._guard.load_state_dict(state["guard"])
        self.runtime.load_scaler_state(state["scaler"])
        self._saved = (self.progress.step, self.progress.evaluated_step)

    def _roll_back(self, loss: float) -> None:
        """Back to the last checkpoint, with the samples of the step that spiked on the skip-list."""
        checkpoint = self.checkpoints.latest(self.runtime)
        assert checkpoint is not None, "a run that may roll back saves at its start"
        mean = self._guard.mean / self._guard.weight
        line = f"step {self.progress.step}: loss {loss:.4f} is a spike (mean {mean:.4f})"
        self._rollbacks += 1
        if self._rollbacks > MAX_ROLLBACKS:
            raise ValueError(
                f"{line}, after {MAX_ROLLBACKS} rollbacks to step {checkpoint.step}: it is not this data; lower "
                "optim.lr or raise train.spike_factor"
            )
        source, train_seconds = self.source.skip_last(checkpoint.state["source"]), self.progress.train_seconds
        self._restore(checkpoint)
        self.source.load_state_dict(source)
        self.progress.train_seconds = train_seconds
        self.log.resume_at(self.progress.step, self.progress.evaluated_step)
        self.log.say(f"{line}; rolled back to step {self.progress.step}, its samples are skipped from now on")
