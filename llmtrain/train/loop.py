"""The training loop: pull a step's microbatches, sum their shares' gradients, step, log, evaluate, save.

It knows no objective, dataset or model: those come as a BatchSource, an Objective and an nn.Module. What it
owes is that a step is the same however it is split, and that a run resumes as if it had not been stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Literal

from torch import nn
from torch.optim import Optimizer

from llmtrain.config.sections import CheckpointConfig, EvalConfig, LogConfig
from llmtrain.protocols import BatchSource, BatchType, Evaluate, Interrupted, Objective, SourceFailed, StateWithoutStep
from llmtrain.system.counted import counted
from llmtrain.system.files import one_line
from llmtrain.system.stop_signal import StopSignal
from llmtrain.train.checkpoint import Checkpoint, Checkpoints
from llmtrain.train.ema import Ema
from llmtrain.train.optim import shrink_l1
from llmtrain.train.profile import StepProfiler
from llmtrain.train.progress import Progress
from llmtrain.train.run_log import RunLog
from llmtrain.train.runtime import Runtime
from llmtrain.train.schedule import Schedule
from llmtrain.train.step_guard import StepGuard

Outcome = Literal["finished", "stopped early", "interrupted"]


@dataclass
class Loop(Generic[BatchType]):
    """One run: its parts, and `run()`."""

    runtime: Runtime
    model: nn.Module  # as the runtime prepared it, like the optimizer
    optimizer: Optimizer
    objective: Objective[BatchType]
    source: BatchSource[BatchType]
    schedule: Schedule
    num_steps: int
    evaluate: Evaluate | None
    checkpoints: Checkpoints
    log: RunLog
    guard: StepGuard
    stop: StopSignal
    profiler: StepProfiler
    eval_config: EvalConfig
    checkpoint_config: CheckpointConfig
    log_config: LogConfig
    state_without_step: StateWithoutStep | None = None  # needed if `guard` looks for spikes
    l1: float = 0.0
    ema: Ema | None = None
    noise: Sequence[str] = ()  # what draws random numbers by rank
    progress: Progress = field(default_factory=Progress)

    def run(self) -> Outcome:
        """Train until the source is finished, patience is out, or a signal asks to stop; save in each case."""
        try:
            return self._run()
        except Exception as error:
            cause = self.runtime.cause_of(error)
            with suppress(ValueError, OSError):  # the folder is lost or the disk is full: `error` may be just that
                self.log.event("failed", self.progress.step, {"reason": one_line(cause)})
            if cause is not error:
                raise cause from None
            raise

    def _run(self) -> Outcome:
        self._said_pace = False
        self._saved_position = (-1, -1)
        if (latest := self.checkpoints.latest(self.runtime)) is not None:
            state = latest.state
            self._restore(latest, state)
            step = self.progress.step
            if step > self.num_steps:
                raise ValueError(f"the run is at step {step} already, past its {self.num_steps} steps")
            self.log.say(f"resumed at step {step} from {latest.path}, {self.num_steps - step} steps left")
            self._compare_ranks(state.get("world_size", self.runtime.world_size))
        else:
            self.runtime.make_state()
        self.log.resume_at(*self.progress.position)
        self.log.event("started" if latest is None else "resumed", self.progress.step, {"num_steps": self.num_steps})
        self.stop.note()
        try:
            outcome = self._train()
        except SourceFailed:
            self.profiler.close()
            self._save()
            raise
        self.profiler.close()
        if outcome != "interrupted" and not self._evaluate_step():
            outcome = "interrupted"  # the last evaluation is owed to whoever resumes
        self._save()
        if outcome == "interrupted":
            self.log.event("interrupted", self.progress.step, {"reason": self._stop_reason})
        else:
            self.log.event("finished", self.progress.step, {"outcome": outcome})
        return outcome

    def _compare_ranks(self, saved_by: int) -> None:
        """Say what is no longer as in the run left alone, if another number of ranks saved the checkpoint."""
        if self.noise and saved_by != self.runtime.world_size:
            self.log.say(
                f"{' and '.join(self.noise)}: drawn by rank, so {self.runtime.world_size} processes draw other noise "
                f"than the {saved_by} that saved step {self.progress.step}; samples and their order stay as they were"
            )

    def _train(self) -> Outcome:
        self.model.train()
        outcome: Outcome | None = None
        while outcome is None:
            if self._is_due(self.eval_config.every, at_start=True):
                self._evaluate_step()
            if self._is_due(self.checkpoint_config.every, at_start=self.guard.spike_factor is not None):
                self._save()
            if self.progress.is_out_of(self.eval_config.patience):
                return "stopped early"
            self.profiler.before_step(self.progress.step + 1)
            outcome = self._step()
            self.profiler.after_step(self.progress.step)
        return outcome

    def _is_due(self, every: int | None, *, at_start: bool) -> bool:
        step = self.progress.step
        return at_start if step == 0 else step == self.num_steps or (every is not None and step % every == 0)

    def _step(self) -> Outcome | None:
        """One optimizer step; None if the run continues."""
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
        counts = [
            {
                "input_tokens": batch.num_tokens,
                "attended_tokens": batch.num_attended,
                **self.objective.counts(batch),
            }
            for batch in microbatches
        ]
        totals, stop = self.runtime.sum_counts(counts, self.stop.requested is not None)
        self._name_slow_rank()
        if stop:  # the same on every rank; the source has not advanced, so a resumed run gets this step again
            self.log.say(f"{self._stop_reason}: stopping after {counted(progress.step, 'step')}")
            return "interrupted"
        metrics = []
        for i, batch in enumerate(microbatches):
            with self.runtime.microbatch(last=i == len(microbatches) - 1):
                share, parts = self.objective.loss(self.model, batch.to(self.runtime.device), totals)
                self.runtime.backward(share)
            metrics.append(parts)
        result = self.runtime.step()
        values = self.runtime.sum_metrics(metrics)
        progress.step += 1
        is_spike = result.applied and self.guard.is_spike(values["loss"])
        if not result.applied:
            self.log.event("skipped", progress.step)
            self.log.say(self.guard.skip(progress.step, [i for batch in microbatches for i in batch.sample_ids]))
        elif not is_spike:
            self.guard.accept(values["loss"])
            progress.tokens += int(totals["tokens"])
            shrink_l1(self.optimizer, self.l1)
            if self.ema is not None:
                self.ema.update(progress.step)
        seconds = time.perf_counter() - started
        progress.train_seconds += seconds
        if is_spike:
            self._roll_back(values["loss"])
            return None
        self.source.advance()
        self.log.count_step(totals, seconds)
        if progress.step % self.log_config.every == 0 or progress.step == self.num_steps:
            self._log_step(values, result.grad_norm)
        elif not self._said_pace:
            every = f"a line every {counted(self.log_config.every, 'step')}"
            self.log.say(f"step {progress.step}/{self.num_steps} took {seconds:.1f} s; {every}")
        self._said_pace = True
        return None

    def _name_slow_rank(self) -> None:
        """Say which rank all others wait for; it ends nothing."""
        if (found := self.runtime.slow_rank()) is not None:
            name, slow = found
            self.log.event("slow", self.progress.step, slow._asdict())
            self.log.say(f"slow: {name} {slow.reason}")

    @property
    def _stop_reason(self) -> str:
        return self.stop.requested or "a signal on another rank"

    def _log_step(self, values: dict[str, float], grad_norm: float) -> None:
        self.progress.tick()
        own = {"grad_norm": grad_norm, "lr": self.optimizer.param_groups[0]["lr"], "tokens": self.progress.tokens}
        self.log.train_row({**self._row, **values, **self.source.metrics(), **own, **self.guard.metrics()})

    @property
    def _row(self) -> dict[str, float | int]:
        """What every row of `metrics.jsonl` starts with."""
        return self.progress.row | {"epoch": self.source.epoch}

    def _evaluate_step(self) -> bool:
        """Evaluate the weights that would be exported, once per step, and save the best at once; False if stopped."""
        if self.evaluate is None or self.progress.evaluated_step == self.progress.step:
            return True
        if self.progress.step == 0:  # nothing was said since the model was prepared
            self.log.say("evaluating before the first step")
        self.model.eval()
        with nullcontext() if self.ema is None else self.ema.applied():
            values = self.evaluate(self.model, lambda: self.runtime.any(self.stop.requested is not None))
        self.model.train()
        if values is None:
            return False
        is_best = self.progress.is_best(values["eval_loss"])
        self.progress.record_evaluation(values["eval_loss"])
        self.log.eval_row(self._row | values)
        if not math.isfinite(values["eval_loss"]):
            self.log.say(f"step {self.progress.step}: eval_loss is {values['eval_loss']}: it never counts as the best")
        if is_best and self.checkpoint_config.best:
            self._save(best=True)
        return True

    def _save(self, best: bool = False) -> None:
        if self._saved_position == self.progress.position:
            return
        self.progress.tick()
        state = {
            "progress": self.progress.state_dict(),
            "source": self.source.state_dict(),
            "guard": self.guard.state_dict(),
            "scaler": self.runtime.scaler_state(),
            "world_size": self.runtime.world_size,
        }
        extra = {} if self.ema is None else {"ema": self.ema.average}
        self.checkpoints.save(self.runtime, self.progress.step, state, extra=extra, best=best)
        self._saved_position = self.progress.position
        self.guard.reset_rollbacks()

    def _restore(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        self.runtime.load_named_state(checkpoint.read_parameter)
        if self.ema is not None:
            self.ema.load(checkpoint.read_all("ema"))
        self.progress.load_state_dict(state["progress"])
        self.source.load_state_dict(state["source"])
        self.guard.load_state_dict(state["guard"])
        self.runtime.load_scaler_state(state["scaler"])
        self._saved_position = self.progress.position

    def _roll_back(self, loss: float) -> None:
        """Go back to the last checkpoint, with the samples of the step that spiked on the skip-list."""
        checkpoint = self.checkpoints.latest(self.runtime)
        assert checkpoint is not None, "a run that may roll back saves before its first step"
        assert self.state_without_step is not None, "its source can skip samples"
        spike = {"loss": loss, "mean": self.guard.running_mean, "to_step": checkpoint.step}
        self.log.say(self.guard.record_spike(self.progress.step, loss, checkpoint.step))
        self.log.event("rolled_back", self.progress.step, spike)
        state = checkpoint.state
        state["source"] = self.state_without_step(state["source"])
        self.progress.tick()
        state["progress"] |= self.progress.clocks  # time is spent, whatever step the run goes back to
        self._restore(checkpoint, state)
        self.log.resume_at(*self.progress.position)
