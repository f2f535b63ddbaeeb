"""Search for good settings: `llmtrain sweep CONFIG SPACE.yaml [key=value ...]`, or `--auto` instead of a space.

Each trial is a real run of the recipe, in a process of its own and a folder of its own, scored by its held-out loss.
SPACE.yaml says what varies:

    optim.lr: {log: [1e-5, 1e-3]}            a range on a log scale
    optim.warmup_steps: {range: [0, 20]}     an even range
    adapter.rank: [8, 16, 32]                choices

A sweep that was stopped or killed is continued by the same command; several processes, on machines that share the
folder, share the trials. docs/tune.md has more.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from pathlib import Path

from llmtrain.system.console import open_console
from llmtrain.system.paths import local_path
from llmtrain.tune.sweep.request import DEFAULT_TRIALS, Budget, Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a configuration to start from: a file, or a name of `llmtrain configs`")
    add("rest", metavar="SPACE.yaml [key=value ...]", nargs="*", default=[], help="what varies, and overrides")
    add("--auto", action="store_true", help="propose what varies and how often, from model, data and machine")
    add("--trials", type=int, help=f"settings to try (default: {DEFAULT_TRIALS}; a grid: all of it)")
    add("--hours", type=float, help="start no trial after so many hours of running trials, all processes together")
    add("--tokens", type=float, help="start no trial after so many trained tokens, all processes together")
    add("--sampler", choices=("tpe", "random", "grid"), default="tpe", help="how settings are chosen (default: tpe)")
    add("--seeds", type=int, default=1, help="runs of each setting, whose mean counts (default: 1)")
    add("--dir", help="folder of the sweep (default: run.dir of CONFIG with -sweep)")
    add("--minimize", metavar="METRIC", help="metric of the evaluations that counts (default: eval_loss)")
    add("--maximize", metavar="METRIC", help="the same, of which more is better: eval_accuracy")
    add("--no-pruning", action="store_true", help="let bad trials run to their end")
    add("--keep-best", action="store_true", help="delete checkpoints and models of all but the best trial")
    add("--launcher", help="what starts a run, as in 'llmtrain launch --num_processes 2' (default: python)")
    add("--recipe", choices=("pretrain", "sft", "rlhf"), help="for a CONFIG that fits several")


def run(arguments: argparse.Namespace) -> None:
    """Search, then print the result."""
    _check(arguments)
    _require_extra()
    from llmtrain.tune.sweep.command import sweep

    console = open_console()
    if code := sweep(_request(arguments), console):
        raise SystemExit(code)


def _request(arguments: argparse.Namespace) -> Request:
    """What a command line asks for. Raises ValueError for what does not go together."""
    overrides = [word for word in arguments.rest if "=" in word]
    paths = [word for word in arguments.rest if "=" not in word]
    if len(paths) > 1:
        raise ValueError(f"give one SPACE.yaml, not {' and '.join(paths)}; overrides are key=value")
    space = Path(paths[0]) if paths else None
    if arguments.auto and space is not None:
        raise ValueError(f"--auto proposes a space: give it or {space}, not both")
    if not arguments.auto and space is None:
        raise ValueError("give SPACE.yaml, which says what varies, or --auto; `llmtrain sweep --help` shows one")
    return Request(
        argv=[arguments.config, *overrides],
        recipe=arguments.recipe,
        space=space,
        budget=Budget(arguments.trials, arguments.hours, None if arguments.tokens is None else int(arguments.tokens)),
        sampler=arguments.sampler,
        seeds=arguments.seeds,
        folder=None if arguments.dir is None else local_path(arguments.dir),
        metric=arguments.maximize or arguments.minimize or "eval_loss",
        maximize=arguments.maximize is not None,
        prunes=not arguments.no_pruning,
        keep_best=arguments.keep_best,
        launcher=arguments.launcher,
    )


def _check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for an option out of its range."""
    for name in ("trials", "seeds", "hours", "tokens"):
        value = vars(arguments)[name]
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name}={value:g}: must be a number above 0")
    if arguments.minimize and arguments.maximize:
        raise ValueError("give --minimize or --maximize, not both")


def _require_extra() -> None:
    """Raises ValueError, naming what to install, if the search's libraries are missing."""
    for module in ("optuna", "sklearn", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"a sweep needs {module}, which is not installed: pip install 'llmtrain[tune]'")
