"""`--auto`: what to vary and how long, proposed from the model's size, the data and the machine.

A probe, a real run of three steps, measures the machine and reads the data. From it follow how many runs the time
allows, and so whether they are shortened; the model's size gives the learning rate that the search starts from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.load import yaml_text
from llmtrain.config.recipes import PretrainConfig, RecipeConfig, TuningConfig, without_before_after
from llmtrain.runs.folder import ENVIRONMENT, LEDGER, read_json
from llmtrain.system.counted import clock
from llmtrain.system.files import FREE_RUN, write_bytes
from llmtrain.system.run_files import METRICS_FILE
from llmtrain.train.run_log import read_rows
from llmtrain.tune.sweep.run import RunPlan, run_to_end
from llmtrain.tune.sweep.target import Target

DEFAULT_HOURS = 0.5
PROBE_STEPS = 3  # the first warms up: the others are timed
MAX_TRIALS = 30
ENOUGH_TRIALS = 8  # with fewer runs of full length than these, runs are shortened
LEAST_STEPS = 8  # of a shortened run
EVALUATIONS = 4  # of a run, so that a bad one can be stopped
SMALL_DATA_ROWS = 5000  # up to which the number of epochs is worth a search

LR_EXPONENT = 0.4  # GPT-3, table 2.1: 6e-4 at 125M, 1.2e-4 at 6.7B
ADAPTER_FACTOR = 10  # QLoRA, appendix B, against Llama 2, section 3.1: 2e-4 against 2e-5 at 7B
TUNING_ANCHOR, PRETRAINING_ANCHOR = 7e9, 125e6  # model sizes that the schemas' default learning rates are of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Probe:
    """What three steps have shown."""

    parameters: int
    rows: int  # to train on
    device: str
    cpus: int
    start_seconds: float  # before the first step
    step_seconds: float
    eval_seconds: float
    num_steps: int  # of the configuration's run

    def run_seconds(self, steps: int) -> float:
        """How long a run of so many steps takes."""
        return self.start_seconds + steps * self.step_seconds + (EVALUATIONS + 1) * self.eval_seconds


@dataclass(frozen=True)
class Proposal:
    """What to search, and why."""

    changes: Mapping[str, Any]  # of each run, so that the time suffices; not of the best configuration
    space: Mapping[str, Any]
    first: Sequence[Mapping[str, Any]]
    trials: int
    hours: float
    lines: Sequence[str]


def probe(target: Target, folder: Path, launcher: str | None, stop_requested: Callable[[], bool]) -> Probe:
    """Run three steps in a folder, or read those that were run there. Raises ValueError if they fail, Stopped."""
    run_folder = folder / "probe"
    short = {
        "run.dir": str(run_folder),
        "train.steps": PROBE_STEPS,
        "train.epochs": None,
        "optim.warmup_steps": 1,
        "eval.every": None,
        "eval.patience": None,
        "checkpoint.every": None,
        "checkpoint.best": False,
        "checkpoint.export_best": False,
        "train.spike_factor": None,
        "log.every": 1,
        "log.report": False,
        **without_before_after(target.config),
    }
    tree = target.tree_with(short)
    path = folder / "configs" / "probe.yaml"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, yaml_text(tree).encode(), FREE_RUN)
    plan = RunPlan(
        command=target.command(str(path), launcher),
        folder=run_folder,
        log=folder / "logs" / "probe.txt",
        metric="eval_loss",
        takes_best=False,
    )
    result = run_to_end(plan, lambda _step, _value: False, stop_requested)
    if result.state == "failed":
        raise ValueError(f"the configuration does not run: {result.error}")
    return _measured(target, run_folder, result.seconds)


def propose(target: Target, seen: Probe, hours: float | None) -> Proposal:
    """What to search in so many hours; None: half an hour."""
    hours = DEFAULT_HOURS if hours is None else hours
    lr, why = learning_rate(target.config, seen.parameters)
    full = seen.run_seconds(seen.num_steps)
    affordable = hours * 3600 / full
    steps = seen.num_steps
    if affordable < ENOUGH_TRIALS:
        free = hours * 3600 / ENOUGH_TRIALS - seen.run_seconds(0)
        steps = min(seen.num_steps, max(LEAST_STEPS, int(free / seen.step_seconds)))
    trials = max(3, min(MAX_TRIALS, int(hours * 3600 / seen.run_seconds(steps))))
    lines = [
        f"the model has {seen.parameters:,} weights; {seen.rows:,} rows to train on; on {seen.device} with {seen.cpus} "
        f"cores a step takes {seen.step_seconds:.2g} s and a run of {seen.num_steps} steps {clock(full)} (min:s)",
        f"optim.lr: {lr / 10:.2g} to {lr * 10:.2g}, as {why}",
    ]
    space: dict[str, Any] = {"optim.lr": {"log": [_short(lr / 10), _short(lr * 10)]}}
    if target.config.optim.name == "muon":
        space["optim.muon_lr"] = {"log": [0.005, 0.08]}
        lines.append("optim.muon_lr: 0.005 to 0.08, around the 0.02 of its authors")
    changes = _shortened(target, steps, seen.num_steps)
    is_short = steps < seen.num_steps
    if is_short:
        lines.append(
            f"each run is cut to {steps} of {seen.num_steps} steps, its schedule included, as full runs would be only "
            f"{max(1, int(affordable))} in {hours:g} hours; best.yaml has the full length"
        )
    space |= _further(target, seen, trials, is_short, lines)
    first = [{}, *({"optim.lr": _short(lr * factor)} for factor in (1.0, 3.0, 1 / 3))]
    stops = "" if "train.epochs" in space else "; bad runs are stopped early"
    lines.append(
        f"{hours:g} hours, enough for about {trials} runs: the configuration as it is, so that the best is no worse, "
        f"then the learning rate alone, then all of it by TPE{stops}"
    )
    return Proposal(changes, space, first, trials, hours, lines)


def learning_rate(config: RecipeConfig, parameters: int) -> tuple[float, str]:
    """The learning rate that a model of so many parameters is likely to need, and why."""
    default = float(type(config.optim).model_fields["lr"].default)
    is_new = isinstance(config, PretrainConfig)
    anchor = PRETRAINING_ANCHOR if is_new else TUNING_ANCHOR
    lr = default * (anchor / parameters) ** LR_EXPONENT
    why = (
        f"{default:g} suits {anchor / 1e9:g} billion weights, and smaller models take more, by the size to the power "
        f"{LR_EXPONENT} (GPT-3)"
    )
    if isinstance(config, TuningConfig) and config.adapter.kind != "none":
        lr *= ADAPTER_FACTOR
        why += f", adapters {ADAPTER_FACTOR} times as much"
    return min(lr, 0.03), why


def _further(target: Target, seen: Probe, trials: int, is_short: bool, lines: list[str]) -> dict[str, Any]:
    """What else varies, if there is time for it."""
    config, space = target.config, dict[str, Any]()
    left = []
    if trials >= 12 and not is_short and config.train.epochs is not None and seen.rows <= SMALL_DATA_ROWS:
        epochs = config.train.epochs
        space["train.epochs"] = [epochs, 2 * epochs, 3 * epochs]
        lines.append(f"train.epochs: {epochs:g}, {2 * epochs:g} or {3 * epochs:g}, as so few rows bear repeating")
    elif config.train.epochs is not None:
        left.append("train.epochs")
    if trials >= 16:
        most = max(1, seen.num_steps // 5)
        space["optim.warmup_steps"] = {"range": [0, most]}
        lines.append(f"optim.warmup_steps: 0 to {most}, a fifth of the run")
    else:
        left.append("optim.warmup_steps")
    if isinstance(config, TuningConfig) and config.adapter.kind != "none":
        if trials >= 24:
            rank = config.adapter.rank
            space["adapter.rank"] = sorted({max(1, rank // 2), rank, 2 * rank})
            lines.append("adapter.rank: half, as it is, or twice")
        else:
            left.append("adapter.rank")
    if left:
        lines.append(f"left as they are, as the learning rate matters more: {', '.join(left)}")
    return space


def _shortened(target: Target, steps: int, num_steps: int) -> dict[str, Any]:
    """Changes to each run: its length, and evaluations at which a bad one can be stopped."""
    config = target.config
    changes: dict[str, Any] = {}
    if steps < num_steps:
        changes |= {"train.steps": steps, "train.epochs": None}
        if config.optim.warmup_steps is not None:
            changes["optim.warmup_steps"] = min(config.optim.warmup_steps, steps // 5)
    if config.eval.patience is None and not config.exports_best and not config.checkpoint.best:
        changes["eval.every"] = max(1, steps // EVALUATIONS)
    return changes


def _measured(target: Target, folder: Path, seconds: float) -> Probe:
    rows, _ = read_rows(folder / METRICS_FILE)
    trained = [row for row in rows if "eval_loss" not in row]
    evaluated = [row for row in rows if "eval_loss" in row]
    environment = read_json(folder / ENVIRONMENT, "remove the sweep's folder and start again")
    ledger = read_json(folder / LEDGER, "remove the sweep's folder and start again")
    last = trained[-1]
    step_seconds = (last["train_seconds"] - trained[0]["train_seconds"]) / max(1, len(trained) - 1)
    eval_seconds = max(0.0, evaluated[-1]["elapsed_seconds"] - last["elapsed_seconds"])
    spent = len(trained) * step_seconds + 2 * eval_seconds
    train = target.config.train
    num_steps = train.steps or math.ceil((train.epochs or 1.0) * last["step"] / ledger["training"]["epochs"])
    return Probe(
        parameters=int(environment["parameters"]),
        rows=sum(source["kept"]["train"]["documents"] for source in ledger["train"]),
        device=str(environment["device"]),
        cpus=int(environment["cpus"] or 1),
        start_seconds=max(0.0, seconds - spent),
        step_seconds=max(step_seconds, 1e-4),
        eval_seconds=eval_seconds,
        num_steps=num_steps,
    )


def _short(number: float) -> float:
    return float(f"{number:.2g}")
