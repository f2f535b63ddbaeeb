"""What every recipe does the same way: open a run, hand its parts to the loop, record how it went.

A recipe brings what is its own (data, model, objective) and calls `open_training` and `train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.recipes import RecipeConfig
from llmtrain.models.attention import compile_model
from llmtrain.protocols import BatchSource, BatchType, Evaluate, Objective, TrainedModule
from llmtrain.runs.folder import open_run, record_run
from llmtrain.system.device import peak_flops, peak_memory_bytes
from llmtrain.train.checkpoint import Checkpoint, Checkpoints
from llmtrain.train.guard import StopSignal
from llmtrain.train.loop import Loop
from llmtrain.train.optim import Ema, make_optimizer
from llmtrain.train.profile import StepProfiler
from llmtrain.train.progress import Progress
from llmtrain.train.run_log import RunLog
from llmtrain.train.runtime import Runtime
from llmtrain.train.schedule import make_schedule


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    outcome: str
    progress: Progress
    checkpoint: Checkpoint | None  # what the model is made from; None where the run was interrupted


def open_training(config: RecipeConfig) -> tuple[Path, Runtime]:
    """The run's folder, checked, and the processes that train. Raises ValueError for what cannot work here."""
    folder = open_run(config.run, config)
    runtime = Runtime(
        precision=config.train.precision,
        max_grad_norm=config.optim.max_grad_norm,
        seed=config.run.seed,
        timeout_minutes=config.log.timeout_minutes,
        trackers=config.log.trackers,
        run_dir=folder,
    )
    runtime.require(config.features())
    return folder, runtime


def train(
    config: RecipeConfig,
    folder: Path,
    runtime: Runtime,
    module: TrainedModule,
    *,
    objective: Objective[BatchType],
    source: BatchSource[BatchType],
    num_steps: int,
    evaluate: Evaluate | None,
    flops_per_token: float,
    facts: Mapping[str, Any],
    stop: StopSignal | None = None,
    critic_lr: float | None = None,
) -> Trained:
    """Run the loop over a recipe's parts; `facts` go to `environment.json` beside those of the machine.

    `stop` is given where the source looks at it too.
    """
    schedule = make_schedule(config.optim, num_steps)
    profiler = StepProfiler(config.log.profile, folder / "profile", runtime.rank, num_steps)
    peak, peak_source = peak_flops(runtime.device, runtime.dtype)
    if runtime.is_main:
        machine = {
            "device": str(runtime.device),
            "engine": runtime.engine,
            "world_size": runtime.world_size,
            **module.facts(),
            "peak_flops": peak,
            "peak_flops_source": peak_source,
        }
        record_run(folder, config, machine | dict(facts))
    runtime.start_trackers(config.log.project)

    for trunk in module.trunks():
        if config.train.activation_checkpointing:
            trunk.activation_checkpointing_enable({"use_reentrant": False})
        if config.train.compile:
            compile_model(trunk)
    ema = None if config.train.ema_decay is None else Ema(module, config.train.ema_decay)
    prepared, optimizer = runtime.prepare(module, make_optimizer(module.parameters_by_kind(), config.optim, critic_lr))
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, config.checkpoint.best)
    log = RunLog(
        folder,
        is_main=runtime.is_main,
        num_steps=num_steps,
        flops_per_token=flops_per_token,
        peak_flops=peak * runtime.world_size,
        track=runtime.track,
        memory_bytes=lambda: peak_memory_bytes(runtime.device),
    )
    loop = Loop(
        runtime=runtime,
        model=prepared,
        optimizer=optimizer,
        objective=objective,
        source=source,
        schedule=schedule,
        num_steps=num_steps,
        evaluate=evaluate,
        checkpoints=checkpoints,
        log=log,
        stop=stop or StopSignal(),
        profiler=profiler,
        train=config.train,
        eval=config.eval,
        checkpoint=config.checkpoint,
        logging=config.log,
        l1=config.optim.l1,
        ema=ema,
    )
    with log:
        outcome = loop.run()
    optimizer.state.clear()  # which is saved; an export has its memory
    if outcome == "interrupted":
        return Trained(outcome, loop.progress, None)
    checkpoint = checkpoints.best(runtime) if config.exports_best else checkpoints.latest(runtime)
    return Trained(outcome, loop.progress, checkpoint)
