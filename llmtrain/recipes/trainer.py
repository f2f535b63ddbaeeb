"""What every recipe does the same way: open a run, hand its parts to the loop, record how it went.

A recipe brings what is its own (data, model, objective) and calls `open_training`, `with_loss_here` and `train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from llmtrain.config.recipes import RecipeConfig
from llmtrain.models.attention import compile_model
from llmtrain.models.cpu.layers import fuse_layers
from llmtrain.models.load import attention_dropout
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.protocols import BatchSource, BatchType, Evaluate, Objective, Role, StateWithoutStep
from llmtrain.runs.folder import open_run, record_run
from llmtrain.system.device import attention_kernel, fuses_layers, peak_flops, peak_memory_bytes
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
        timeout_minutes=config.run.timeout_minutes,
        trackers=config.log.trackers,
        run_dir=folder,
    )
    runtime.require(config.features())
    return folder, runtime


def with_loss_here(config: RecipeConfig, model: PreTrainedModel, runtime: Runtime) -> CausalLMLoss:
    """The model with its loss inside, on this process's device, with the layers and the attention that suit it."""
    if fuses_layers(runtime.device) and not runtime.shards_parameters:
        fuse_layers(model)
    kernel = attention_kernel(config.model.attention, runtime.device, runtime.dtype, attention_dropout(model.config))
    return wrap_causal_lm(model, kernel, config.data.max_seq_len, runtime.device)


def train(
    config: RecipeConfig,
    folder: Path,
    runtime: Runtime,
    module: CausalLMLoss | RewardModel | ActorCritic,
    parameters: Mapping[Role, Sequence[nn.Parameter]],
    *,
    objective: Objective[BatchType],
    source: BatchSource[BatchType],
    num_steps: int,
    evaluate: Evaluate | None,
    flops_per_token: float,
    facts: Mapping[str, Any],
    stop: StopSignal | None = None,
    critic_lr: float | None = None,
    state_without_step: StateWithoutStep | None = None,
) -> Trained:
    """Run the loop over a recipe's parts; `facts` go to `environment.json` beside those of the machine.

    `stop` is given where the source looks at it too; `state_without_step` where a loss spike may roll back.
    """
    schedule = make_schedule(config.optim, num_steps)
    profiler = StepProfiler(config.log.profile, folder / "profile", runtime.rank, num_steps)
    peak, peak_source = peak_flops(runtime.device, runtime.dtype)
    if runtime.is_main:
        machine = {
            "device": str(runtime.device),
            "engine": runtime.engine,
            "world_size": runtime.world_size,
            "attention": module.kernel,
            "whole_logits": module.whole_logits,
            "peak_flops": peak,
            "peak_flops_source": peak_source,
        }
        record_run(folder, config, machine | dict(facts))
    runtime.start_trackers(config.log.project)

    for trunk in (part for part in module.children() if isinstance(part, PreTrainedModel)):  # a critic may have its own
        if config.train.activation_checkpointing:
            trunk.activation_checkpointing_enable({"use_reentrant": False})
        if config.train.compile:
            compile_model(trunk)
    ema = None if config.train.ema_decay is None else Ema(module, config.train.ema_decay)
    prepared, optimizer = runtime.prepare(module, make_optimizer(parameters, config.optim, critic_lr))
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
        guard=StepGuard(config.train.max_nonfinite_steps, config.train.spike_factor),
        stop=stop or StopSignal(),
        profiler=profiler,
        eval_config=config.eval,
        checkpoint_config=config.checkpoint,
        log_config=config.log,
        state_without_step=state_without_step,
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
