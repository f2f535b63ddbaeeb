"""What a folder of folds holds: the rows of each fold, and the configuration of the run of each.

DIR/plan.json                   K, the key, the configuration, what the sources held; written last
DIR/data/ rows.jsonl            the rows: see `rows`
DIR/configs/fold-1.yaml ...     what each fold's run is started with
DIR/fold-1/ ...                 the runs, each a run's folder like any other
DIR/predictions/ ...            of each finished fold's held-out rows
DIR/predictions.jsonl  dropped.jsonl  crossval.json  crossval.html      the result
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

from llmtrain.config.load import validate
from llmtrain.config.recipes import PreferenceStageConfig, RecipeConfig, RewardStageConfig, SftConfig
from llmtrain.config.sections import marks_on_resume
from llmtrain.data.sources.files import content_of, resolve_rows
from llmtrain.runs.facts import first_difference
from llmtrain.runs.folder import read_json
from llmtrain.system.files import LOCK, exclusive, full_disk_named, sync_folder, write_json
from llmtrain.system.lease import LEASE
from llmtrain.system.typing import Report
from llmtrain.tune.crossval.folds import assign
from llmtrain.tune.crossval.rows import Grouped, fold_file, group_rows, read_records, source_folder, write_folds

DATA, PLAN = "data", "plan.json"
PARTIAL = f"{DATA}.partial"
FREE_DIR = "free some space or choose another --dir"
VERBS: dict[type[RecipeConfig], str] = {SftConfig: "sft", RewardStageConfig: "rlhf", PreferenceStageConfig: "rlhf"}
"""Configurations that folds can be made of -> the verb that runs them."""
OF_FOLDS = ["run.dir", "run.resume", "run.push_to_hub", "data.eval", "data.eval_fraction"]
"""Keys that a fold's run has its own values of."""


@dataclass(frozen=True)
class Plan:
    """K folds of a configuration's data, in a folder."""

    folder: Path
    config: RecipeConfig  # as the user gave it
    num_folds: int
    by: str | None  # the key of groups; None: the content
    num_groups: int
    fold_rows: Sequence[Sequence[int]]  # by fold and source: the rows that are held out
    dropped: Mapping[str, int]  # why a run would leave rows out -> how many
    split_contents: int  # by a key: contents that have rows in several groups

    @property
    def data(self) -> Path:
        """Where the rows are."""
        return self.folder / DATA

    @property
    def verb(self) -> str:
        return VERBS[type(self.config)]

    @property
    def grouped_by(self) -> str:
        """What the rows of a group have in common."""
        if self.by is not None:
            return self.by
        return "conversation" if isinstance(self.config, SftConfig) else "question"

    @property
    def num_used(self) -> int:
        return sum(map(sum, self.fold_rows))

    @property
    def num_rows(self) -> int:
        """All rows of the sources: those in folds, and those that no run would use."""
        return self.num_used + sum(self.dropped.values())

    def run_folder(self, fold: int) -> Path:
        """The run's folder of a fold, from 1."""
        return self.folder / f"fold-{fold}"

    def config_path(self, fold: int) -> Path:
        """What the run of a fold is started with."""
        return self.folder / "configs" / f"fold-{fold}.yaml"

    def predictions_path(self, fold: int) -> Path:
        """What the model of a fold predicts of the rows that it never saw."""
        return self.folder / "predictions" / f"fold-{fold}.jsonl"

    def fold_config(self, fold: int) -> RecipeConfig:
        """The configuration of a fold's run: the user's, but for its rows and its folder."""
        tree = self.config.model_dump()
        held_out = self.fold_rows[fold - 1]
        train, evaluated = [], []
        for index, source in enumerate(self.config.data.train):
            total = sum(rows[index] for rows in self.fold_rows)
            path = fold_file(self.data, index, fold)
            how = {**source.naming, "weight": source.weight}
            if total > held_out[index]:
                exclude = [path.name] if held_out[index] else []
                train.append({"path": str(source_folder(self.data, index)), "exclude": exclude, **how})
            if held_out[index]:
                evaluated.append({"path": str(path), **source.naming})
        fraction = type(self.config.data).model_fields["eval_fraction"].default
        tree["data"] |= {"train": train, "eval": evaluated, "eval_fraction": fraction}
        tree["run"] |= {"dir": str(self.run_folder(fold)), "resume": "auto", "push_to_hub": None}
        return validate(type(self.config), tree)


def make_plan(config: RecipeConfig, num_folds: int, by: str | None, folder: Path, report: Report) -> Plan:
    """The plan of a folder: found, or made, with the files of all folds.

    Raises ValueError, one line, for fewer than two folds or more than there are groups, for rows that cannot be used,
    and for a folder that holds another cross-validation.
    """
    if num_folds < 2:
        raise ValueError(f"--folds {num_folds}: give at least 2")
    if has_magic(str(folder)):
        raise ValueError(f"--dir {folder}: its rows are read as data.train, where *, ? and [ make a pattern: rename it")
    is_new = not (folder / DATA / PLAN).is_file()
    if is_new and folder.exists() and any(_is_foreign(each.name) for each in folder.iterdir()):
        raise ValueError(f"--dir {folder} is not empty and holds no cross-validation: choose another folder")
    asked = {
        "folds": num_folds,
        "by": by,
        "config": config.model_dump(),
        "sources": [
            content_of(source, resolve_rows(source), config.data.cache_dir, report).fingerprint
            for source in config.data.train
        ],
    }
    if is_new:
        grouped = group_rows(config, by)
        if num_folds > len(grouped.sizes):
            what = "different conversations or questions" if by is None else f"values of {by}"
            raise ValueError(
                f"--folds {num_folds}: the {grouped.num_used:,} rows have {len(grouped.sizes):,} {what}: give at most "
                "as many folds"
            )
        with exclusive(folder, report, "--dir"), full_disk_named(folder, FREE_DIR):
            if not (folder / DATA / PLAN).is_file():
                _write(folder, config, grouped, num_folds, asked)
    plan = _opened(folder, config, asked)
    for fold in range(1, num_folds + 1):
        plan.fold_config(fold)  # raises ValueError for one that cannot run
    return plan


def _is_foreign(name: str) -> bool:
    """Whether a file is nothing that a kill leaves of a plan that was not finished."""
    return name not in (PARTIAL, LOCK) and not LEASE.fullmatch(name)


def _write(folder: Path, config: RecipeConfig, grouped: Grouped, num_folds: int, asked: Mapping[str, Any]) -> None:
    """Write the plan and its rows, whole or not at all."""
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_folds(config, grouped.groups, assign(grouped.sizes, num_folds, config.run.seed), partial)
    counts = [[0] * len(config.data.train) for _ in range(num_folds)]
    for record in read_records(partial):
        if "fold" in record:
            counts[record["fold"] - 1][record["source"]] += 1
    found = {
        "groups": len(grouped.sizes),
        "fold_rows": counts,
        "dropped": dict(grouped.dropped),
        "split_contents": grouped.split_contents,
    }
    write_json(partial / PLAN, {**asked, **found}, FREE_DIR)
    partial.rename(folder / DATA)
    sync_folder(folder)


def _opened(folder: Path, config: RecipeConfig, asked: Mapping[str, Any]) -> Plan:
    """The plan that a folder holds. Raises ValueError if it is another than is asked for."""
    tree = read_json(folder / DATA / PLAN, "choose another --dir, or remove that folder")
    free = [key for key, mark in marks_on_resume(type(config)) if mark.names_content or not mark.matters]
    may_differ = [f"config.{key}" for key in (*OF_FOLDS, *free)]
    difference = first_difference({key: tree.get(key) for key in asked}, asked, may_differ)
    if difference is not None:
        key, there, here = difference
        what = "the rows of data.train are others" if key.startswith("sources") else f"{key.removeprefix('config.')} is"
        values = "" if key.startswith("sources") else f" {there!r} there and {here!r} here"
        raise ValueError(
            f"--dir {folder} holds another cross-validation ({what}{values}): choose another folder, or remove that one"
        )
    return Plan(
        folder=folder,
        config=config,
        num_folds=tree["folds"],
        by=tree["by"],
        num_groups=tree["groups"],
        fold_rows=tree["fold_rows"],
        dropped=tree["dropped"],
        split_contents=tree["split_contents"],
    )
