"""The folds of a plan, trained and predicted one by one, by one process or by several that share them.

A process that works on a fold holds a lease for it, so that others take other folds, and take over one whose process
was killed; its run then goes on from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmtrain.config.load import save_config
from llmtrain.runs.folder import is_finished
from llmtrain.system.exit_codes import EXIT_SAVED
from llmtrain.system.files import is_disk_full
from llmtrain.system.lease import POLL_SECONDS, Lease, Watch, try_to_take
from llmtrain.system.typing import Report
from llmtrain.tune.child import Stopped
from llmtrain.tune.crossval.plan import FREE_DIR, Plan

Predict = Callable[[Plan, int], None]
"""Writes what the finished run of a fold predicts of its held-out rows."""
RunRecipe = Callable[[str, list[str]], int]
"""A verb and its arguments -> the exit code; raises Stopped."""


def run_folds(plan: Plan, run_recipe: RunRecipe, predict: Predict, report: Report) -> None:
    """Train and predict every fold that is not.

    Waits for folds that other processes have. Raises ValueError for a run that fails, and Stopped, also if someone else
    has stopped a run.
    """
    watches: dict[int, Watch] = {fold: Watch() for fold in range(1, plan.num_folds + 1)}
    waits_for: set[int] = set()
    while pending := [fold for fold in watches if not is_done(plan, fold)]:
        for fold in pending:
            taken = _taken(plan.folder / "claims" / f"fold-{fold}", watches[fold], report)
            if isinstance(taken, str):
                if fold not in waits_for:
                    report(f"fold {fold}: {taken} has it")
                waits_for.add(fold)
                continue
            try:
                if not is_done(plan, fold):
                    _run_fold(plan, fold, run_recipe, predict, report)
            finally:
                taken.release()
            break  # from the first that is not done: its process may have been killed meanwhile
        else:
            time.sleep(POLL_SECONDS)


def is_done(plan: Plan, fold: int) -> bool:
    """Whether a fold is trained and predicted."""
    is_predicted = plan.predictions_path(fold).is_file()
    return is_predicted and is_finished(plan.run_folder(fold), plan.fold_config(fold))


def _run_fold(plan: Plan, fold: int, run_recipe: RunRecipe, predict: Predict, report: Report) -> None:
    """Train and predict one fold. Raises ValueError if its run fails, Stopped if it is stopped before its end."""
    folder, config, path = plan.run_folder(fold), plan.fold_config(fold), plan.config_path(fold)
    if not is_finished(folder, config):
        num_held_out = sum(plan.fold_rows[fold - 1])
        report(
            f"fold {fold} of {plan.num_folds}: {plan.num_used - num_held_out:,} rows are trained on, "
            f"{num_held_out:,} held out, in {folder}"
        )
        plan.predictions_path(fold).unlink(missing_ok=True)
        _wait_for_run(folder, report)
        code = 0
        if not is_finished(folder, config):
            path.parent.mkdir(exist_ok=True)
            save_config(config, path)
            code = run_recipe(plan.verb, [str(path)])
        if not is_finished(folder, config):
            if code not in (0, EXIT_SAVED):
                raise ValueError(
                    f"fold {fold}: `llmtrain {plan.verb} {path}` ended with exit code {code}, for the reason above. "
                    "The same crossval command goes on from here"
                )
            raise Stopped
    report(f"fold {fold} of {plan.num_folds}: predicting the rows that it held out")
    predict(plan, fold)


def _wait_for_run(folder: Path, report: Report) -> None:
    """Wait while a run is still going whose crossval process was killed."""
    watch, is_waiting = Watch(), False
    if not folder.is_dir():
        return
    while isinstance(lease := try_to_take(folder, watch, lambda _: None), str):
        if not is_waiting:
            report(f"{folder}: {lease} still trains it; waiting for its end")
            is_waiting = True
        time.sleep(POLL_SECONDS)
    lease.release()


def _taken(folder: Path, watch: Watch, report: Report) -> Lease | str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return try_to_take(folder, watch, report)
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        fix = FREE_DIR if is_disk_full(error) else "choose another --dir"
        raise ValueError(f"{folder}: cannot be written ({error.strerror}); {fix}") from None
