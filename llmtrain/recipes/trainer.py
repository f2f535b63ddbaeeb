"""What every recipe does the same way: open a run, train what the recipe has built, close the run.

    in_run(config, stop, work)                  # calls `work` with the open run, unless it is finished:
        trained = train(run, training)          # the loop, from the last checkpoint on
        close(run, training, trained)           # the model's folder

A recipe brings what is its own: data, model, objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn
from torch.optim import Optimizer

from llmtrain.config.recipes import RecipeConfig
from llmtrain.data.loader.batches import StoredBatches
from llmtrain.eval.before_after.measure import BeforeAfter
from llmtrain.models.adapters.quantized import num_weights
from llmtrain.models.attention import compile_model
from llmtrain.models.flops import TrainingFlops
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.matrices import matrices_of
from llmtrain.models.noise import drawn_noise
from llmtrain.models.paths.rows import PADDED, padding_share
from llmtrain.protocols import (
    BatchSource,
    BatchType,
    Evaluate,
    MatrixLayout,
    Objective,
    Report,
    TrainedModule,
)
from llmtrain.recipes.command import UNTRAINED
from llmtrain.runs.export import MODEL, export_run
from llmtrain.runs.facts import Facts
from llmtrain.runs.folder import (
    CHECKPOINTS,
    FINISHED,
    LEDGER,
    check_folder,
    is_finished,
    mark_finished,
    record_ledger,
    record_run,
)
from llmtrain.runs.meeting import check_meeting
from llmtrain.runs.outline import save_outline
from llmtrain.runs.report.report import report_run
from llmtrain.runs.sole_writer import sole_writer
from llmtrain.system.device import peak_flops, peak_memory_bytes
from llmtrain.system.ending import LaunchEnded
from llmtrain.system.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from llmtrain.system.leaving import is_launched
from llmtrain.system.run_files import after_path, before_path
from llmtrain.system.stop_signal import Stopped, StopSignal
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

SIGNAL_PATIENCE_SECONDS = 1.0  # until it is known whether a signal came because another rank has ended

Config = TypeVar("Config", bound=RecipeConfig)
Config_co = TypeVar("Config_co", bound=RecipeConfig, covariant=True)


@dataclass(frozen=True)
class Run(Generic[Config_co]):
    """An open run: what was asked for, where it is kept, and the processes that train."""

    config: Config_co
    folder: Path
    runtime: Runtime
    may_write: Callable[[], bool]  # whether this process writes to the folder; raises LeaseLost if it no longer may
    stop: StopSignal
    last: bool  # no other run follows in this process


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
    stored: StoredBatches[Any] | None = None  # what `source` takes its batches from; None: rollouts
    critic_lr: float | None = None
    before_after: BeforeAfter | None = None  # what is measured of the model before and after training


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    outcome: str
    progress: Progress
    checkpoint: Checkpoint | None  # what is exported; None: the run was interrupted


def in_run(config: Config, stop: StopSignal, work: Callable[[Run[Config]], None], *, last: bool = True) -> None:
    """Open a run and do the work in it: check its folder, join the other processes, hold the folder.

    A run that is finished is left as it is. Raises ValueError for what cannot work here, and for a folder that another
    launch holds; Stopped or KeyboardInterrupt if a signal ended it.
    """
    folder = check_folder(config.run, config)
    runtime = _joined(config, folder, stop)
    with _ending_all(runtime, stop), _held_by_main(config, folder, runtime) as may_write:
        runtime.require(config.features())
        if runtime.any(may_write() and is_finished(folder, config) and (folder / MODEL).is_dir()):
            runtime.say(
                f"run.dir={folder}: this run is finished: nothing to do (another run needs another run.dir; to export "
                f"this one again, remove {FINISHED})"
            )
            runtime.finish(leave=last)
            return
        work(Run(config, folder, runtime, may_write, stop, last))


def _joined(config: RecipeConfig, folder: Path, stop: StopSignal) -> Runtime:
    """This process among those that train together; a signal is acted on once all are there, so that all end alike."""
    if is_launched():
        stop.note()
    check_meeting(folder, config.model_dump(mode="json"), config.run.timeout_minutes, lambda: bool(stop.requested))
    runtime = Runtime(
        precision=config.train.precision,
        max_grad_norm=config.optim.max_grad_norm,
        seed=config.run.seed,
        timeout_minutes=config.run.timeout_minutes,
        trackers=config.log.trackers,
        run_dir=folder,
    )
    with _ending_all(runtime, stop):
        stop.end()
    return runtime


@contextmanager
def _ending_all(runtime: Runtime, stop: StopSignal) -> Iterator[None]:
    """If this process ends by an error or a signal, so do the others, and know why."""
    try:
        yield
    except Exception as error:
        stop.note()  # a launcher that has noticed sends SIGTERM
        cause = runtime.cause_of(error)
        if cause is not error:
            raise cause from None
        raise
    except (KeyboardInterrupt, Stopped) as end:
        stop.note()
        # A launcher sends SIGTERM also where a rank has failed.
        if (ending := runtime.other_ending(SIGNAL_PATIENCE_SECONDS)) is not None:
            raise LaunchEnded(ending) from None
        status = EXIT_INTERRUPTED if isinstance(end, KeyboardInterrupt) else EXIT_SAVED
        runtime.announce("interrupted", str(end) or UNTRAINED, status)
        raise


@contextmanager
def _held_by_main(config: RecipeConfig, folder: Path, runtime: Runtime) -> Iterator[Callable[[], bool]]:
    """The folder, held by the main process; whether this one may write, which raises if it no longer may."""
    if not runtime.is_main:
        yield lambda: False
        return
    with sole_writer(folder, f"run.dir={folder}", runtime.say) as lease:
        check_folder(config.run, config)  # again: another launch may have made it its own, and ended

        def may_write() -> bool:
            lease.require()
            return True

        yield may_write


def train(run: Run[Config], training: Training[BatchType]) -> Trained:
    """Run the loop to its end, from the last checkpoint where there is one, and write the ledger."""
    config, folder, runtime = run.config, run.folder, run.runtime
    # These may refuse the configuration: before `_record_start` makes the folder this run's.
    schedule = make_schedule(config.optim, training.num_steps)
    profiler = StepProfiler(config.log.profile, folder / "profile", runtime.rank, training.num_steps)
    peak, peak_source = peak_flops(runtime.device, runtime.dtype)
    _record_start(run, training, {"peak_flops": peak, "peak_flops_source": peak_source})
    runtime.start_trackers(config.log.project)

    prepared, optimizer = _prepared(run, training.module, training.critic_lr)
    # After `_prepared`, which may move or shard the parameters: an average made before is of what no longer trains.
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
        stop=run.stop,
        profiler=profiler,
        eval_config=config.eval,
        checkpoint_config=config.checkpoint,
        log_config=config.log,
        state_without_step=None if training.stored is None else training.stored.state_without_step,
        l1=config.optim.l1,
        ema=ema,
        noise=drawn_noise(training.module),
    )
    _measure(run, training, prepared, before_path(folder), step=0)  # before the loop loads a checkpoint
    with log:
        outcome = loop.run()
    if run.may_write():
        record_ledger(folder, training.ledger, training.account(loop.progress))
    if outcome == "interrupted":
        return Trained(outcome, loop.progress, None)
    run.stop.note_all_but_ctrl_c()
    checkpoint = checkpoints.best(runtime) if config.exports_best else checkpoints.latest(runtime)
    if checkpoint is None:
        raise ValueError(
            "no held-out loss of this run was finite, so no checkpoint is the best: to export the last one, start the "
            "same command again with checkpoint.export_best=false and eval.patience=null"
        )
    _measure_exported(run, training, loop, checkpoint)
    optimizer.state.clear()  # the last checkpoint has it, and an export needs the memory
    return Trained(outcome, loop.progress, checkpoint)


def _record_start(run: Run[Config], training: Training[BatchType], peak: Mapping[str, Any]) -> None:
    """Report how the model computes, and write what a run's folder has from its start.

    Raises ValueError if the folder is of a run that started with something else.
    """
    folder, runtime, facts = run.folder, run.runtime, training.module.facts()
    runtime.say(_path_line(training))
    if facts["unreached"]:
        runtime.say(str(facts["unreached"]))
    if not run.may_write():
        return
    parameters = list(training.module.parameters())
    machine = {
        "parameters": sum(num_weights(parameter) for parameter in parameters),
        "trained_parameters": sum(num_weights(parameter) for parameter in parameters if parameter.requires_grad),
        "device": str(runtime.device),
        "engine": runtime.engine,
        "world_size": runtime.world_size,
        **facts,
        **peak,
    }
    record_run(folder, run.config, machine, training.facts)
    save_outline(folder, training.spec)
    if not (folder / LEDGER).exists():
        record_ledger(folder, training.ledger)


def _prepared(run: Run[Config], module: TrainedModule, critic_lr: float | None) -> tuple[nn.Module, Optimizer]:
    """The module and its optimizer, as the engine trains them. Collective."""
    config, runtime = run.config, run.runtime
    for trunk in module.trunks():
        if config.train.activation_checkpointing:
            trunk.activation_checkpointing_enable({"use_reentrant": False})
        if config.train.compile:
            compile_model(trunk)
    layouts = {} if config.optim.name != "muon" else _matrix_layouts(module, runtime.say)
    optimizer = make_optimizer(module.parameters_by_kind(), config.optim, critic_lr, layouts)
    if runtime.world_size > 1:
        runtime.say(f"preparing {runtime.engine} on {runtime.world_size} processes")  # DeepSpeed may have to be built
    return runtime.prepare(module, optimizer)


def _measure_exported(
    run: Run[Config], training: Training[BatchType], loop: Loop[BatchType], checkpoint: Checkpoint
) -> None:
    """Measure the weights that are exported, for before and after."""
    if training.before_after is None:
        return
    last, ema = loop.progress.step, loop.ema
    if checkpoint.step != last:  # the best one is exported
        run.runtime.load_named_state(checkpoint.read_parameter)
        if ema is not None:
            ema.load(checkpoint.read_all("ema"))
    with nullcontext() if ema is None else ema.applied(), _interrupted_at(unexported(last)):
        _measure(run, training, loop.model, after_path(run.folder), step=checkpoint.step)


def _measure(run: Run[Config], training: Training[BatchType], prepared: nn.Module, path: Path, *, step: int) -> None:
    """Measure the weights that the module has, for before and after, if the run asks for it."""
    if training.before_after is not None:

        def should_stop() -> bool:
            return run.runtime.any(run.stop.requested is not None)

        training.before_after.measure(path, prepared, should_stop, may_write=run.may_write, step=step)


def _path_line(training: Training[BatchType]) -> str:
    """How documents run together; of padded rows of stored data, with the share of padding in a first step."""
    facts = training.module.facts()
    grouping = PADDED.get(str(facts["attention"]))
    if grouping is None or training.stored is None:
        return str(facts["path"])
    batches = training.stored.next_step() or []  # it does not move on
    return f"{facts['path']}; {padding_share(batches, grouping):.0%} of this rank's first step is padding"


def _matrix_layouts(module: TrainedModule, say: Report) -> dict[nn.Parameter, MatrixLayout]:
    """How the trained parameters hold matrices; a line for those of which that is not known."""
    known = [matrices_of(trunk) for trunk in module.trunks()]
    if unknown := sorted({name for matrices in known for name in matrices.unknown}):
        say(
            f"optim.name=muon updates {', '.join(unknown)} as one matrix each: it looks like several side by side, but "
            "how is not known for this model; optim.name=adamw makes no difference between the two"
        )
    return {parameter: layout for matrices in known for parameter, layout in matrices.layouts.items()}


def close(run: Run[Config], training: Training[BatchType], trained: Trained) -> None:
    """Export the model of a run that came to its end, report what it did, and leave the other processes.

    A signal does not end that, as it is short; Ctrl-C does, and the next start does it. Raises Stopped for a run that a
    signal interrupted, KeyboardInterrupt for Ctrl-C, on every rank.
    """
    runtime, config, step = run.runtime, run.config, trained.progress.step
    with _interrupted_at(unexported(step)):
        if run.may_write() and trained.checkpoint is not None:
            runtime.say(f"{trained.outcome}: {export_run(run.folder, config, trained.checkpoint, training.spec)}")
            mark_finished(run.folder, config)
        if config.log.report and run.may_write():
            report_run(run.folder, runtime.say)
        is_ctrl_c = trained.checkpoint is None and runtime.any(run.stop.requested == "SIGINT")
        runtime.finish(leave=run.last or trained.checkpoint is None)
    if trained.checkpoint is None:
        raise (KeyboardInterrupt if is_ctrl_c else Stopped)(f"after step {step}, which is saved")


def unexported(step: int) -> str:
    """Where a run is that came to its end, and whose model may not be written."""
    return f"after step {step}, the last, which is saved; the model may not be written yet"


@contextmanager
def _interrupted_at(where: str) -> Iterator[None]:
    """Let a Ctrl-C say where it came."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(where) from None
