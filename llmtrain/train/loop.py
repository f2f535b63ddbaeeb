"""The training loop: pull a step's microbatches, sum their shares' gradients, step, look, save.

It knows no objective, dataset or model: those come as a BatchSource, an Objective and an nn.Module. What it
owes is that a step is the same however it is split, and that a run resumes as if it had not been stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Literal

from torch import nn
from torch.optim import Optimizer

from llmtrain.config.sections import CheckpointConfig, EvalConfig, LogConfig, TrainConfig
from llmtrain.protocols import BatchSource, BatchType, Evaluate, Interrupted, Objective
from llmtrain.train.checkpoint import Checkpoint, Checkpoints
from llmtrain.train.guard import StepGuard, StopSignal
from llmtrain.train.optim import Ema, shrink_l1
from llmtrain.train.profile import StepProfiler
from llmtrain.train.progress import Progress
from llmtrain.train.run_log import RunLog
from llmtrain.train.runtime import Runtime
from llmtrain.train.schedule import Schedule

StateWithoutStep = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""(an earlier state of the source) -> the same, with the samples of the present step on its skip-list."""

Outcome = Literal["finished", "stopped early", "interrupted"]


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
    state_without_step: StateWithoutStep | None = None  # given where a spike may roll back
    l1: float = 0.0
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)

    def run(self) -> Outcome:
        """Train until the source is finished, patience is out, or a signal asks to stop; save in each case."""
        self._guard = StepGuard(self.train.max_nonfinite_steps, self.train.spike_factor)
        self._saved, self._window_tokens, self._window_seconds = (-1, -1), 0.0, 0.0
        if (latest := self.checkpoints.latest(self.runtime)) is not None:
            self._restore(latest)
            left = self.num_steps - self.progress.step
            if left < 0:
                raise ValueError(f"the run is at step {self.progress.step} already, past its {self.num_steps} steps")
            self.log.say(f"resumed at step {self.progress.step} from {latest.path}, {left} steps left")
        else:
            self.runtime.make_state()
        self.log.resume_at(self.progress.step, self.progress.evaluated_step)
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
            if self.eval.patience and self.progress.evaluations_since_best >= self.eval.patience:
                return "stopped early"
            self.profiler.before_step(self.progress.step + 1)
            if (outcome := self._step()) is not None:
                return outcome
            self.profiler.after_step(self.progress.step)

    def _due(self, every: int | None, *, at_start: bool) -> bool:
        step = self.progress.step
        return at_start if step == 0 else step == self.num_steps or (every is not None and step % every == 0)

    def _step(self) -> Outcome | None:
        """One optimizer step; None where the run goes on."""
        started, progress = time.perf_counter(), self.progress
        try:
            microbatches = self.source.next_step()
        except Interrupted:
            return "interrupted"
        if microbatches is None:
            return "finished"
        self.runtime.seed_step(progress.step)
        factor = self.schedule(progress.step)
        self.runtime.set_lr(self.optimizer, [factor * group["peak_lr"] for group in self.optimizer.param_groups])
        counts = [{"input_tokens": batch.num_tokens, **self.objective.counts(batch)} for batch in microbatches]
        totals, stop = self.runtime.sum_counts(counts, self.stop.requested is not None)
        if stop:
            self.log.say(f"{self.stop.requested or 'a signal on another rank'}: stopping after {progress.step} steps")
            return "interrupted"
        metrics = []
        for i, batch in enumerate(microbatches):
            share, parts = self.objective.loss(self.model, batch.to(self.runtime.device), totals)
            self.runtime.backward(self.model, share, last=i == len(microbatches) - 1)
            metrics.append(parts)
        result = self.runtime.step(self.model, self.optimizer)
        values = self.runtime.sum_metrics(metrics)

        progress.step += 1
        spiked = False
        if not result.applied:
            self.log.say(self._guard.skipped(progress.step, [i for batch in microbatches for i in batch.sample_ids]))
        elif not (spiked := self._guard.spiked(values["loss"])):
            progress.tokens += int(totals["tokens"])
            if self.l1:
                shrink_l1(self.optimizer, self.l1)
            if self.ema is not None:
                self.ema.update(progress.step)
        seconds = time.perf_counter() - started
        progress.train_seconds += seconds
        if spiked:
            self._roll_back(values["loss"])
            return None
        self.source.advance()
        self._window_tokens += totals["input_tokens"]
        self._window_seconds += seconds
        if progress.step % self.logging.every == 0 or progress.step == self.num_steps:
            self._log_step(values, result.grad_norm)
        return None

    def _log_step(self, values: dict[str, float], grad_norm: float) -> None:
        row = {**self.progress.row(), **values, **self.source.metrics(), "grad_norm": grad_norm}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "tokens": self.progress.tokens}
        if self._guard.nonfinite_total:
            row["nonfinite_steps"] = self._guard.nonfinite_total
        self.log.train_row(row, window_tokens=self._window_tokens, window_seconds=self._window_seconds)
        self._window_tokens, self._window_seconds = 0.0, 0.0

    def _evaluate(self) -> bool:
        """Held-out values of the weights that would be exported, the best saved at once; False where interrupted."""
        if self.evaluate is None or self.progress.evaluated_step == self.progress.step:
            return True
        self.model.eval()
        with nullcontext() if self.ema is None else self.ema.applied():
            values = self.evaluate(self.model, lambda: self.runtime.any(self.stop.requested is not None))
        self.model.train()
        if values is None:
            return False
        is_best = self.progress.evaluated(values["eval_loss"])
        self.log.eval_row(self.progress.row() | values)
        if is_best and self.checkpoint.best:
            self._save(best=True)
        return True

    def _save(self, best: bool = False) -> None:
        if self._saved == (self.progress.step, self.progress.evaluated_step):
            return
        state = {
            "progress": self.progress.state_dict(),
            "source": self.source.state_dict(),
            "guard": self._guard.state_dict(),
            "scaler": self.runtime.scaler_state(),
        }
        extra = {} if self.ema is None else {"ema": self.ema.average}
        step = self.progress.step
        self.checkpoints.save(self.runtime, step, self.model, self.optimizer, state, extra=extra, best=best)
        self._saved = (self.progress.step, self.progress.evaluated_step)
        self._guard.saved()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.runtime.load_named_state(self.model, self.optimizer, checkpoint.read_parameter)
        if self.ema is not None:
            self.ema.load(checkpoint.read_all("ema"))
        state = checkpoint.state
        self.progress.load_state_dict(state["progress"])
        self.source.load_state_dict(state["source"])
        self._guard.load_state_dict(state["guard"])
        self.runtime.load_scaler_state(state["scaler"])
        self._saved = (self.progress.step, self.progress.evaluated_step)

    def _roll_back(self, loss: float) -> None:
        """Back to the last checkpoint, with the samples of the step that spiked on the skip-list."""
        checkpoint = self.checkpoints.latest(self.runtime)
        assert checkpoint is not None, "a run that may roll back saves at its start"
        line = self._guard.rolled_back(self.progress.step, loss, checkpoint.step)
        assert self.state_without_step is not None, "the configuration refuses train.spike_factor for rollouts"
        source, clocks = self.state_without_step(checkpoint.state["source"]), self.progress.clocks()
        self._restore(checkpoint)
        self.source.load_state_dict(source)
        self.progress.load_state_dict(clocks)
        self.log.resume_at(self.progress.step, self.progress.evaluated_step)
        self.log.say(line)
