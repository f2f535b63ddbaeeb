"""What every recipe does the same way: open a run, train what the recipe has built, close the run.

    with open_run(config) as run:               # the folder, which no other process may write to, the processes
        trained = train(run, training)          # the loop, from the last checkpoint on
        close(run, training, trained)           # the model's folder

A recipe brings what is its own: data, model, objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from llmtrain.config.recipes import RecipeConfig
from llmtrain.models.attention import compile_model
from llmtrain.models.flops import TrainingFlops
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.matrices import matrices_of
from llmtrain.protocols import (
    BatchSource,
    BatchType,
    Evaluate,
    MatrixLayout,
    Objective,
    Report,
    StateWithoutStep,
    TrainedModule,
)
from llmtrain.runs.export import export_run
from llmtrain.runs.facts import Facts
from llmtrain.runs.folder import CHECKPOINTS, LEDGER, check_folder, mark_finished, record_ledger, record_run
from llmtrain.runs.outline import outline_of, save_outline
from llmtrain.runs.sole_writer import sole_writer
from llmtrain.system.device import peak_flops, peak_memory_bytes
from llmtrain.train.checkpoint import Checkpoint, Checkpoints
from llmtrain.train.ema import Ema
from llmtrain.train.loop import Loop
from llmtrain.train.optim import make_optimizer
from llmtrain.train.profile import StepProfiler
from llmtrain.train.progress import Progress
from llmtrain.train.run_log import RunLog
from llmtrain.train.runtime import Runtime
from llmtrain.train.schedule import make_schedule
from llmtrain.train.step_guard import StepGuard
from llmtrain.train.stop_signal import StopSignal

Config = TypeVar("Config", bound=RecipeConfig)
Config_co = TypeVar("Config_co", bound=RecipeConfig, covariant=True)


@dataclass(frozen=True)
class Run(Generic[Config_co]):
    """An open run: what was asked for, where it is kept, and the processes that train."""

    config: Config_co
    folder: Path
    runtime: Runtime
    may_write: Callable[[], bool]  # whether this process writes to the folder; raises LeaseLost if it no longer may


@dataclass(frozen=True)
class Training(Generic[BatchType]):
    """What a recipe has built for the loop."""

    module: TrainedModule  # holds everything that is trained
    objective: Objective[BatchType]
    source: BatchSource[BatchType]
    num_steps: int
    evaluate: Evaluate | None  # None: nothing is held out
    flops: TrainingFlops
    ledger: Mapping[str, Any]  # what became of every row and token of the data
    account: Callable[[Progress], Mapping[str, Any]]  # what was trained on, for `ledger.json`
    facts: Facts  # a resumed run must find them again
    spec: ExportSpec  # what the model's folder is made from, besides the weights
    state_without_step: StateWithoutStep | None = None  # of stored batches, for a roll-back after a loss spike
    stop: StopSignal | None = None  # given if the source looks at it too
    critic_lr: float | None = None


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    outcome: str
    progress: Progress
    checkpoint: Checkpoint | None  # what is exported; None: the run was interrupted


@contextmanager
def open_run(config: Config) -> Iterator[Run[Config]]:
    """Check the run's folder, join the other processes, and hold the folder.

    Raises ValueError for what cannot work here, and for a folder that another launch holds.
    """
    folder = check_folder(config.run, config)
    runtime = Runtime(
        precision=config.train.precision,
        max_grad_norm=config.optim.max_grad_norm,
        seed=config.run.seed,
        timeout_minutes=config.run.timeout_minutes,
        trackers=config.log.trackers,
        run_dir=folder,
    )
    runtime.require(config.features())
    if not runtime.is_main:
        yield Run(config, folder, runtime, may_write=lambda: False)
        return
    with sole_writer(folder, f"run.dir={folder}", runtime.say) as lease:
        check_folder(config.run, config)  # again: another launch may have made it its own, and ended

        def may_write() -> bool:
            lease.require()
            return True

        yield Run(config, folder, runtime, may_write)


def train(run: Run[Config], training: Training[BatchType]) -> Trained:
    """Run the loop to its end, from the last checkpoint where there is one, and write the ledger."""
    config, folder, runtime = run.config, run.folder, run.runtime
    # These may refuse the configuration: before `record_run` makes the folder this run's.
    schedule = make_schedule(config.optim, training.num_steps)
    profiler = StepProfiler(config.log.profile, folder / "profile", runtime.rank, training.num_steps)
    peak, peak_source = peak_flops(runtime.device, runtime.dtype)
    if run.may_write():
        machine = {
            "device": str(runtime.device),
            "engine": runtime.engine,
            "world_size": runtime.world_size,
            **training.module.facts(),
            "peak_flops": peak,
            "peak_flops_source": peak_source,
        }
        record_run(folder, config, machine, training.facts)
        save_outline(folder, outline_of(config, training.spec, training.facts))
        if not (folder / LEDGER).exists():
            record_ledger(folder, training.ledger)
    runtime.start_trackers(config.log.project)

    for trunk in training.module.trunks():
        if config.train.activation_checkpointing:
            trunk.activation_checkpointing_enable({"use_reentrant": False})
        if config.train.compile:
            compile_model(trunk)
    layouts = {} if config.optim.name != "muon" else _matrix_layouts(training.module, runtime.say)
    optimizer = make_optimizer(training.module.parameters_by_kind(), config.optim, training.critic_lr, layouts)
    prepared, optimizer = runtime.prepare(training.module, optimizer)
    # After `prepare`, which may move or shard the parameters: an average made before is of what no longer trains.
    ema = None if config.train.ema_decay is None else Ema(training.module, config.train.ema_decay)
    checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint.keep, config.checkpoint.best, run.may_write)
    log = RunLog(
        folder,
        may_write=run.may_write,
        num_steps=training.num_steps,
        flops=training.flops.of_step,
        peak_flops=peak * runtime.world_size,
        track=runtime.track,
        memory_bytes=lambda: peak_memory_bytes(runtime.device),
    )
    loop = Loop(
        runtime=runtime,
        model=prepared,
        optimizer=optimizer,
        objective=training.objective,
        source=training.source,
        schedule=schedule,
        num_steps=training.num_steps,
        evaluate=training.evaluate,
        checkpoints=checkpoints,
        log=log,
        guard=StepGuard(config.train.max_nonfinite_steps, config.train.spike_factor),
        stop=training.stop or StopSignal(),
        profiler=profiler,
        eval_config=config.eval,
        checkpoint_config=config.checkpoint,
        log_config=config.log,
        state_without_step=training.state_without_step,
        l1=config.optim.l1,
        ema=ema,
    )
    with log:
        outcome = loop.run()
    optimizer.state.clear()  # the last checkpoint has it, and an export needs the memory
    if run.may_write():
        record_ledger(folder, training.ledger, training.account(loop.progress))
    if outcome == "interrupted":
        return Trained(outcome, loop.progress, None)
    checkpoint = checkpoints.best(runtime) if config.exports_best else checkpoints.latest(runtime)
    if checkpoint is None:
        raise ValueError(
            "no held-out loss of this run was finite, so no checkpoint is the best: to export the last one, start the "
            "same command again with checkpoint.export_best=false and eval.patience=null"
        )
    return Trained(outcome, loop.progress, checkpoint)


def _matrix_layouts(module: TrainedModule, say: Report) -> dict[nn.Parameter, MatrixLayout]:
    """How the trained parameters hold matrices; a line for those of which that is not known."""
    known = [matrices_of(trunk) for trunk in module.trunks()]
    if unknown := sorted({name for matrices in known for name in matrices.unknown}):
        say(
            f"optim.name=muon updates {', '.join(unknown)} as one matrix each: it looks like several side by side, but "
            "how is not known for this model; optim.name=adamw makes no difference between the two"
        )
    return {parameter: layout for matrices in known for parameter, layout in matrices.layouts.items()}


def close(run: Run[Config], training: Training[BatchType], trained: Trained, *, last: bool = True) -> None:
    """Export the model of a run that came to its end, and leave the other processes.

    `last`: no other run follows in this process.
    """
    runtime, config = run.runtime, run.config
    if run.may_write() and trained.checkpoint is not None:
        outline = outline_of(config, training.spec, training.facts)
        runtime.say(f"{trained.outcome}: {export_run(run.folder, config, trained.checkpoint, outline)}")
        mark_finished(run.folder, config)
    runtime.finish(leave=last or trained.checkpoint is None)
