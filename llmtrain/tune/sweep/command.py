"""`llmtrain sweep`: from what was asked to the best configuration, the page and the table."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llmtrain.config.help import yaml_scalar
from llmtrain.config.load import read_yaml, validate, yaml_text
from llmtrain.system.console import print_line
from llmtrain.system.counted import counted
from llmtrain.system.files import FREE_RUN, one_line, write_bytes
from llmtrain.system.visible import visible_line
from llmtrain.tune.child import Stopped
from llmtrain.tune.stop import stop_signals
from llmtrain.tune.sweep.auto import probe, propose
from llmtrain.tune.sweep.page import SweepResult, sweep_page
from llmtrain.tune.sweep.request import DEFAULT_TRIALS, Budget, Request
from llmtrain.tune.sweep.search import Say, Sweep, run_sweep
from llmtrain.tune.sweep.space import Dimension, check_space, grid_size
from llmtrain.tune.sweep.storage import StudyLock
from llmtrain.tune.sweep.study import PROPOSAL_FILE, Search, Study, TrialRecord, best_of, make_folder
from llmtrain.tune.sweep.target import Target, load_target
from llmtrain.tune.sweep.words import result_table, score_text, setting_text

BEST_FILE, PAGE_FILE = "best.yaml", "sweep.html"
LENGTHS = {"train.steps", "train.epochs", "train.global_batch_tokens"}
"""Keys by which a step is another share of the run."""


def sweep(request: Request, console: Console) -> int:
    """Search, write `best.yaml` and the page, print the result; the exit code, which is not 0 if it was stopped.

    Raises ValueError for what cannot be searched, before anything runs, and if every trial fails.
    """

    def say(line: str) -> None:
        print_line(console, line)

    target = load_target(request.argv, request.recipe)
    if target.config.data.eval is None and not target.config.data.eval_fraction:
        raise ValueError("a sweep compares runs by held-out data: give data.eval or data.eval_fraction")
    folder = request.folder or Path(f"{target.config.run.dir.rstrip('/')}-sweep")
    with stop_signals() as requests:
        try:
            asked = _asked(request, target) if request.space else _proposed(request, target, folder, say, requests.any)
            make_folder(folder)
            for line in _introduction(asked, folder):
                say(line)
            study = Study(folder, asked.search)
            try:
                run_sweep(asked, study, say, requests.any)
            finally:
                _write_result(asked, study, console)
        except Stopped:
            say("stopped; the same command continues the sweep")
            return requests.exit_code
    return 0


def _asked(request: Request, target: Target) -> Sweep:
    """What to search, as the space says."""
    assert request.space is not None
    tree = read_yaml(request.space)
    space = check_space(tree, target, request.metric, str(request.space))
    budget = request.budget
    if request.sampler == "grid":
        grid_size(space)
    elif budget.trials is None and budget.hours is None and budget.tokens is None:
        budget = replace(budget, trials=DEFAULT_TRIALS)
    return _sweep(replace(request, budget=budget), target, target, tree, space, [])


def _proposed(request: Request, given: Target, folder: Path, say: Say, stop_requested: Callable[[], bool]) -> Sweep:
    """What to search, as is proposed, or was when the sweep began."""
    make_folder(folder)
    path = folder / PROPOSAL_FILE
    with StudyLock(folder / "study"):  # another process of the sweep may start at the same time
        if not path.exists():
            say("--auto: three steps of the configuration, to see how fast it trains")
            seen = probe(given, folder, request.launcher, stop_requested)
            proposal = asdict(propose(given, seen, request.budget.hours))
            write_bytes(path, yaml_text(proposal).encode(), FREE_RUN)
    proposal = read_yaml(path)
    for line in proposal["lines"]:
        say(f"--auto: {line}")
    tree = given.tree_with(proposal["changes"])
    target = replace(given, tree=tree, config=validate(given.schema, tree))
    space = check_space(proposal["space"], target, request.metric, str(path))
    budget = Budget(
        request.budget.trials or proposal["trials"], request.budget.hours or proposal["hours"], request.budget.tokens
    )
    return _sweep(replace(request, budget=budget), target, given, proposal["space"], space, proposal["first"])


def _sweep(
    request: Request,
    target: Target,
    given: Target,
    tree: Mapping[str, Any],
    space: Sequence[Dimension],
    first: Sequence[Mapping[str, Any]],
) -> Sweep:
    search = Search(
        recipe=target.verb,
        config=target.tree,
        space=tree,
        first=first,
        sampler=request.sampler,
        seeds=request.seeds,
        metric=request.metric,
        maximize=request.maximize,
        prunes=request.prunes and not _varied_lengths(space),
    )
    return Sweep(target, given, space, search, request.budget, request.launcher, request.keep_best)


def _varied_lengths(space: Sequence[Dimension]) -> list[str]:
    """The keys by which runs cannot be compared at the same step."""
    return sorted(LENGTHS & {dimension.key for dimension in space})


def _introduction(asked: Sweep, folder: Path) -> list[str]:
    search, budget = asked.search, asked.budget
    limits = [
        counted(budget.trials, "trial") if budget.trials is not None else "",
        f"{budget.hours:g} hours of running trials" if budget.hours is not None else "",
        f"{budget.tokens:,} trained tokens" if budget.tokens is not None else "",
    ]
    limit = " or ".join(each for each in limits if each) or "the whole grid"
    score = "best" if asked.target.config.exports_best else "last"
    lines = [f"searching by {search.sampler}: {limit}, in {folder}"]
    lines += [f"  {dimension}" for dimension in asked.space]
    if varied := _varied_lengths(asked.space):
        lines.append(f"no run is stopped early: {', '.join(varied)} varies, so a step is another share of each run")
    seeds = "" if search.seeds == 1 else f", the mean over {search.seeds} seeds"
    which = "highest" if search.maximize else "lowest"
    return [*lines, f"the {which} {search.metric} of each run's {score} evaluation counts{seeds}"]


def _write_result(asked: Sweep, study: Study, console: Console) -> None:
    """Write `best.yaml` and the page, and print the table."""
    search = asked.search
    best_path, page_path = study.folder / BEST_FILE, study.folder / PAGE_FILE
    command = f"llmtrain {asked.target.verb} {shlex.quote(str(best_path))}"
    with study.lock:  # from the reading on: another process of the sweep may write the same files
        records = study.records()
        if not records:
            return
        best = best_of(records, search.maximize)
        best_yaml = "" if best is None else best_text(asked, best, study.folder)
        if best is not None:
            write_bytes(best_path, best_yaml.encode(), FREE_RUN)
        try:
            page = _page(asked, study.folder, records, best_yaml, command)
            write_bytes(page_path, page.encode("utf-8", errors="replace"), FREE_RUN)
        except Exception as error:  # whatever it is, the sweep is well
            print_line(console, f"warning: no report: {type(error).__name__}: {one_line(error)}")
    console.print(result_table(records, search.metric, search.maximize))
    if refused := sum(record.num_refused for record in records):
        reason = next(record.refusal for record in records if record.num_refused)
        print_line(console, f"the configuration refused {counted(refused, 'draw')}; the first: {reason}")
    if best is not None:
        score = f"{search.metric} {score_text(best)}"
        print_line(console, f"best: trial {best.number}, {score}: {setting_text(best.values)}")
        print_line(console, f"to train with it: {command}")
    print_line(console, f"report: {page_path}")


def _page(asked: Sweep, folder: Path, records: Sequence[TrialRecord], best_yaml: str, command: str) -> str:
    best = best_of(records, asked.search.maximize)
    proposal = folder / PROPOSAL_FILE
    return sweep_page(
        SweepResult(
            folder=folder,
            search=asked.search,
            space=asked.space,
            given=given_values(asked.target, [dimension.key for dimension in asked.space]),
            records=records,
            changes=[] if best is None else changes(asked.given, best.values),
            best_yaml=best_yaml,
            command=command,
            proposal=read_yaml(proposal)["lines"] if proposal.exists() else [],
        )
    )


def best_text(asked: Sweep, best: TrialRecord, folder: Path) -> str:
    """`best.yaml`: the configuration with the best setting, which runs as it is in a folder of its own."""
    tree = asked.given.tree_with({**best.values, "run.dir": str(folder / "best")})
    search = asked.search
    lines = [
        f"# The best of a sweep: trial {best.number}, {search.metric} {score_text(best)}.",
        *(f"# {change}" for change in changes(asked.given, best.values)),
        f"# llmtrain {asked.target.verb} {shlex.quote(str(folder / BEST_FILE))}",
    ]
    return "\n".join(map(visible_line, lines)) + "\n" + yaml_text(tree)


def changes(target: Target, values: Mapping[str, Any]) -> list[str]:
    """What a setting changes of the configuration: `optim.lr: 0.0005 -> 0.0002`."""
    before = given_values(target, list(values))
    lines = [
        f"{key}: {yaml_scalar(before[key])} -> {yaml_scalar(value)}"
        for key, value in values.items()
        if before[key] != value
    ]
    return lines or ["nothing changes: the configuration as it is was the best"]


def given_values(target: Target, keys: Sequence[str]) -> dict[str, Any]:
    """Dotted keys and their values in the configuration, defaults included."""
    tree = target.config.model_dump()
    values = {}
    for key in keys:
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        values[key] = value
    return values
