"""Checkpoints on several ranks: every rank goes on from the same one, or all end alike with the same reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_worker import LATE, SPOILT_ELSEWHERE, STEP
from fault_table import record
from kill_points import KILLED
from launch import attempt, ended_well, launch, options_of
from tiny_run import Ended

WORKER, KILLED_WORKER = (Path(__file__).with_name(f"{name}_worker.py") for name in ("checkpoint", "killed_save"))

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks went through every case."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(WORKER, [str(folder)], config="cpu", output=folder / "process")
    return folder


def seen(folder: Path, case: str) -> tuple[Any, Any]:
    """What each of the two ranks got of a case."""
    one, other = (json.loads((folder / f"seen-{rank}.json").read_text())[case] for rank in range(2))
    return one, other


def test_no_checkpoint_is_none_on_every_rank(folder: Path) -> None:
    assert seen(folder, "no checkpoint") == (None, None)


def test_every_rank_goes_on_from_the_newest(folder: Path) -> None:
    assert seen(folder, "whole") == ([20, {"step": 20}],) * 2


def test_a_state_that_cannot_be_saved_ends_every_rank_with_the_reason(folder: Path) -> None:
    main, other = seen(folder, "not plain")
    reason = "state source: keys must be strings"
    assert main == f"TypeError: {reason}"
    assert other.startswith("CheckpointError: cannot write the checkpoint ") and other.endswith(f": {reason}")


def test_a_disk_that_refuses_a_save_ends_every_rank_with_the_reason_and_leaves_the_last_good_one(folder: Path) -> None:
    main, other = seen(folder, "disk")
    assert main.startswith("CheckpointError: cannot write the checkpoint ") and "File too large" in main
    assert main.endswith("the last good one is untouched: free space on the disk, or move run.dir")
    assert other == main
    assert seen(folder, "after disk") == ([20, {"step": 20}],) * 2


def test_a_run_that_was_taken_over_ends_on_every_rank(folder: Path) -> None:
    main, other = seen(folder, "taken over")
    assert main == "ValueError: run.dir was taken over by another process"
    assert other.endswith("step-00000030: run.dir was taken over by another process")


@pytest.mark.parametrize(("case", "number"), [("older format", 0), ("newer format", 2)])
def test_another_format_is_refused_on_every_rank(folder: Path, case: str, number: int) -> None:
    main, other = seen(folder, case)
    assert f"{STEP} is of format {number}, this version of llmtrain reads format 1" in main
    assert other.partition(": ")[2] == main.partition(": ")[2]


def test_where_no_checkpoint_is_whole_every_rank_is_refused(folder: Path) -> None:
    main, other = seen(folder, "none whole")
    assert "is whole: remove the folder to start from the beginning" in main
    assert other == main


@pytest.mark.parametrize("case", LATE)
def test_a_rank_that_sees_a_checkpoint_late_waits_for_it(folder: Path, case: str) -> None:
    assert seen(folder, case) == ([20, {"step": 20}],) * 2


@pytest.mark.parametrize("case", SPOILT_ELSEWHERE)
def test_a_rank_that_sees_another_checkpoint_is_named_and_no_rank_goes_on(folder: Path, case: str) -> None:
    main, other = seen(folder, case)
    fix = "run.dir must be on a file system that all machines share"
    assert main.startswith("ValueError: rank 1 does not see ") and main.endswith(f"as the main process does: {fix}")
    reason = {"piece missing": "optimizer-00001.safetensors is missing", "other length": "model-00001.safetensors is"}
    assert "ValueError: rank 1 does not see " in other and reason.get(case, "manifest.json") in other
    if case == "piece missing":
        sees = other.replace("ValueError", "error").replace(str(folder / "elsewhere" / case), "run/checkpoints")
        record(fault="one machine does not see a file of the last checkpoint", sees=sees, lost="nothing")


@pytest.mark.parametrize(
    ("config", "rank", "number"),
    [
        ("cpu", 0, 16),
        *(
            pytest.param(*kill, marks=pytest.mark.slow)
            for kill in [
                ("cpu", 0, 1),
                ("cpu", 0, 9),
                ("cpu", 0, 19),
                ("cpu", 1, 3),
                ("cpu_zero2", 0, 9),
                ("cpu_zero2", 1, 3),
            ]
        ),
    ],
)
def test_a_rank_killed_inside_a_save_ends_all_and_leaves_a_whole_checkpoint(
    tmp_path: Path, config: str, rank: int, number: int
) -> None:
    def run(rank: int, number: int, output: str) -> Ended:
        arguments = [str(tmp_path / "checkpoints"), str(rank), str(number)]
        return attempt(options_of(config), KILLED_WORKER, arguments, output=tmp_path / output)

    assert run(rank, number, "killed").code == KILLED
    again = ended_well(run(-1, 0, "again"))
    steps = [line for line in again.out.splitlines() if line.startswith("continued from ")]
    assert steps in (["continued from 10"], ["continued from 20"])
    record(
        fault=f"`kill -9` of rank {rank} inside a save ({config}, moment {number})",
        sees=f"the launcher's report; started again: {steps[0]}",
        lost="nothing that was saved before",
    )
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert left == [f"step-{int(steps[0].split()[-1]) + 1:08d}"]
