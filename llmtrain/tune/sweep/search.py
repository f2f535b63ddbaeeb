"""The search: claim a trial, run it, note how it ended, until the budget is spent; any number of processes share it."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.load import validate, yaml_text
from llmtrain.config.recipes import without_before_after
from llmtrain.system.files import FREE_RUN, write_bytes
from llmtrain.tune.child import POLL_SECONDS, Stopped
from llmtrain.tune.sweep.request import Budget
from llmtrain.tune.sweep.run import RunPlan, RunResult, run_to_end
from llmtrain.tune.sweep.space import Dimension
from llmtrain.tune.sweep.study import Claim, Search, Study, TrialRecord, best_of
from llmtrain.tune.sweep.suggest import Setting, draw, fixed, grid
from llmtrain.tune.sweep.target import Target
from llmtrain.tune.sweep.words import describe_start, describe_trial

HOPELESS = 3  # if the first so many trials fail, all will: the setting is not what is at fault
SEED = 0  # of the draws
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """A search, and how its runs are started."""

    target: Target  # of each run
    given: Target  # of the best configuration: without what only shortens the runs of the search
    space: Sequence[Dimension]
    search: Search
    budget: Budget
    launcher: str | None
    keep_best: bool  # only the best trial keeps checkpoints and model


def run_sweep(sweep: Sweep, study: Study, say: Say, stop_requested: Callable[[], bool]) -> None:
    """Run trials until the budget is spent or nothing is left to try. Raises ValueError if every trial fails, Stopped.

    Trials that other processes run are left to them.
    """
    plan = _Plan(sweep, study)
    for line in plan.lines:
        say(line)
    while True:
        with study.lock:
            claim = study.claim_left() or plan.next_trial()
        if claim is None:
            if not study.is_watching():
                break
            time.sleep(POLL_SECONDS)  # a process of another machine: its heartbeat shows whether it lives
        else:
            say(describe_start(claim, study.folder))
            try:
                record = _run_trial(sweep, study, claim, stop_requested)
            finally:
                claim.lease.release()
            say(describe_trial(record, best_of(study.records(), sweep.search.maximize), sweep.search.metric))
            if sweep.keep_best:
                _free_disk(study, sweep.search.maximize)
        if stop_requested():
            raise Stopped
    _refuse_hopeless(study.records())


class _Plan:
    """Which setting comes next."""

    def __init__(self, sweep: Sweep, study: Study) -> None:
        self._sweep, self._study = sweep, study
        self._first = [dict(values) for values in sweep.search.first]
        self._combinations: Sequence[Mapping[str, Any]] | None = None
        self.lines: list[str] = []
        if sweep.search.sampler == "grid":
            planned = grid(sweep.space, sweep.target.refusal)
            self._combinations = planned.combinations
            if planned.num_refused:
                self.lines.append(
                    f"{planned.num_refused} of {planned.num_refused + len(planned.combinations)} combinations are left "
                    f"out, as the configuration refuses them; the first: {planned.refusal}"
                )

    def next_trial(self) -> Claim | None:
        """Start the next trial, if the budget allows one and a setting is left; under the lock."""
        trials, records = self._study.trials(), self._study.records()
        if not self._sweep.budget.allows(records) or _is_hopeless(records):
            return None
        setting = self._setting(len(trials), trials)
        return None if setting is None else self._study.start(setting)

    def _setting(self, number: int, history: Sequence[Any]) -> Setting | None:
        space = self._sweep.space
        if number < len(self._first):
            return fixed(space, self._first[number])
        if self._combinations is not None:
            left = [values for values in self._combinations if values not in self._first]
            index = number - len(self._first)
            return fixed(space, left[index]) if index < len(left) else None
        return draw(self._sweep.search.sampler, space, self._sweep.target.refusal, SEED, history)


def trial_tree(sweep: Sweep, values: Mapping[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """The configuration of a run of a trial."""
    own: dict[str, Any] = {"run.dir": str(folder), "log.report": False}  # `llmtrain report` writes it if it is wanted
    own |= without_before_after(sweep.target.config)
    if sweep.search.seeds > 1:
        own["run.seed"] = sweep.target.config.run.seed + seed
    return sweep.target.tree_with({**values, **own})


def _run_trial(sweep: Sweep, study: Study, claim: Claim, stop_requested: Callable[[], bool]) -> TrialRecord:
    """Run every seed of a trial, and note its end."""
    number = claim.record.number
    results: list[RunResult] = []
    for seed in range(sweep.search.seeds):
        result = run_to_end(
            _run_plan(sweep, study, claim.record, seed),
            # Only the first seed is compared: the others only confirm what it has shown.
            lambda step, value, seed=seed: seed == 0 and study.report(number, step, value),  # type: ignore[misc]
            stop_requested,
        )
        results.append(result)
        study.note(
            number,
            scores=[each.score for each in results if each.score is not None],
            steps=max(each.steps for each in results),
            tokens=sum(each.tokens for each in results),
            seconds=sum(each.seconds for each in results),
        )
        if result.state != "finished":
            study.note(number, error=result.error)
            return study.finish(claim, result.state, None)
    return study.finish(claim, "finished", statistics.fmean(_scores(results)))


def _run_plan(sweep: Sweep, study: Study, record: TrialRecord, seed: int) -> RunPlan:
    """Write the configuration of a run, and say what to run."""
    number = f"{record.number:04d}"
    folder, name = study.folder / "trials" / number, number
    if sweep.search.seeds > 1:
        folder, name = folder / f"seed-{seed}", f"{number}-seed-{seed}"
    tree = trial_tree(sweep, record.values, folder, seed)
    config = validate(sweep.target.schema, tree)
    path = study.folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, yaml_text(tree).encode(), FREE_RUN)
    return RunPlan(
        command=sweep.target.command(str(path), sweep.launcher),
        folder=folder,
        log=study.folder / "logs" / f"{name}.txt",
        metric=sweep.search.metric,
        takes_best=config.exports_best,
    )


def _free_disk(study: Study, maximize: bool) -> None:
    """Delete checkpoints and models of ended trials that are not the best."""
    records = study.records()  # once: a trial that another process ends meanwhile may be the best
    best = best_of(records, maximize)
    for record in records:
        if record.state != "running" and (best is None or record.number != best.number):
            for kind in ("checkpoints", "model", "merged"):
                for folder in (study.folder / "trials" / f"{record.number:04d}").glob(f"**/{kind}"):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_hopeless(records: Sequence[TrialRecord]) -> bool:
    ended = [record for record in records if record.state != "running"]
    return len(ended) >= HOPELESS and all(record.state == "failed" for record in ended)


def _refuse_hopeless(records: Sequence[TrialRecord]) -> None:
    """Raise ValueError, with the first error, if no trial came to its end."""
    failed = [record for record in records if record.state == "failed"]
    if failed and len(failed) == len(records):
        which = "the only trial failed" if len(failed) == 1 else f"all of the {len(failed)} trials failed"
        raise ValueError(f"{which}, the first with: {failed[0].error}")


def _scores(results: Sequence[RunResult]) -> list[float]:
    return [result.score for result in results if result.score is not None]
