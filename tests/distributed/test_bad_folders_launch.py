"""Two processes and a folder or a disk that is not as it should be: one line, exit code 2, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fault_table import record
from launch import LIMIT_SECONDS, attempt, launch, options_of, started
from tiny_run import PRETRAIN, Ended, metrics, write_config, write_corpus, write_tokenizer

from llmtrain.system.lease import Watch, try_to_take
from llmtrain.train.checkpoint import find_checkpoint

pytestmark = pytest.mark.timeout(400)
STEPS = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    write_corpus(folder / "corpus.jsonl", seed=1)
    return folder


def write_run(inputs: Path, folder: Path, **sections: Any) -> Path:
    """The configuration of a run with a checkpoint after each step."""
    sections = {"train": {"steps": STEPS}, "checkpoint": {"every": 1, "keep": 2}, "eval": {"every": None}} | sections
    sections["data"] = {"cache_dir": str(inputs / "cache")}
    return write_config(folder, inputs / "tokenizer", [inputs / "corpus.jsonl"], **sections)


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run in two processes that has come to its end."""
    config = write_run(inputs, tmp_path_factory.mktemp("finished"))
    launch(PRETRAIN, [str(config)], config="cpu", output=config.parent / "process")
    return config


def copied(finished: Path, folder: Path) -> Path:
    """The run as it is if it was killed before its end."""
    shutil.copytree(finished.parent, folder, ignore=shutil.ignore_patterns("model", "finished.yaml", "step-00000004"))
    return folder / "run"


def refused(config: Path, run: Path, *overrides: str, num_processes: int = 2) -> str:
    """What a launch says that ends at once with exit code 2."""
    arguments = [str(config), f"run.dir={run}", *overrides]
    ended = attempt(options_of("cpu", num_processes), PRETRAIN, arguments, output=run.parent / "refused")
    return the_error(ended)


def the_error(ended: Ended) -> str:
    """The one line with which the first rank to fail ends."""
    assert ended.code == 2 and "Traceback" not in ended.err, ended.err[-3000:]
    errors = [line.partition("error: ")[2] for line in ended.err.splitlines() if "error: " in line]
    assert errors and len(set(errors)) == 1
    return errors[0]


@pytest.mark.parametrize("number", [0, 2])
def test_a_checkpoint_of_another_format_is_refused(finished: Path, tmp_path: Path, number: int) -> None:
    run = copied(finished, tmp_path / "copy")
    manifest = run / "checkpoints" / "step-00000003" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": number}))
    reason = refused(finished, run)
    assert f"step-00000003 is of format {number}, this version of llmtrain reads format 1: continue with" in reason
    assert manifest.exists()
    record(fault="a checkpoint of another version of llmtrain", sees=f"error: {reason}", lost="nothing")


def test_checkpoints_that_lost_a_piece_are_refused(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "copy")
    for file in run.glob("checkpoints/*/optimizer-00001.safetensors"):
        file.unlink()
    reason = refused(finished, run)
    assert "is whole: remove the folder to start from the beginning" in reason
    record(fault="every checkpoint lost a file", sees=f"error: {reason}", lost="what those checkpoints held")


def test_more_processes_than_a_step_has_packs_are_refused(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reason = refused(finished, run, "train.global_batch_tokens=64", "train.microbatch_tokens=32", num_processes=3)
    assert reason == (
        "train.global_batch_tokens=64 is 2 packs of data.max_seq_len=32 for 3 processes: start at most 2, or, for "
        "another run, raise it to at least 96"
    )
    assert not (run / "config.yaml").exists()
    record(fault="more processes than a step has packs", sees=f"error: {reason}", lost="nothing")


def test_a_folder_that_another_job_holds_is_refused(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "copy")
    lease = try_to_take(run, Watch(), print)
    assert not isinstance(lease, str)
    try:
        reason = refused(finished, run)
    finally:
        lease.release()
    assert f"run.dir={run} is in use by process {os.getpid()} on " in reason
    record(fault="a second job on the folder of one that runs", sees=f"error: {reason}", lost="nothing")


def test_a_folder_of_another_run_is_refused(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "copy")
    reason = refused(finished, run, "optim.lr=0.5")
    assert f"run.dir={run} holds another run (optim.lr is 0.01 there and 0.5 here)" in reason
    record(fault="a job on the folder of another run", sees=f"error: {reason}", lost="nothing")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 8 MiB; skipped where one may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"\0" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    def remount(how: str) -> bool:
        return subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], capture_output=True).returncode == 0

    while not remount("ro"):
        pass  # a file is being written
    try:
        yield
    finally:
        assert remount("rw")


@pytest.mark.slow
@pytest.mark.parametrize(("spoiled", "reason"), [(full, "No space left"), (read_only, "Read-only file system")])
def test_a_disk_that_takes_no_more_ends_every_rank_and_the_run_goes_on_from_its_last_checkpoint(
    inputs: Path, disk: Path, tmp_path: Path, spoiled: Any, reason: str
) -> None:
    config = write_run(inputs, tmp_path / "run", run={"dir": str(disk / "run")}, train={"steps": 1_000_000})
    run = disk / "run"
    process = started(options_of("cpu"), PRETRAIN, [str(config)], output=tmp_path / "process")
    process.wait_until(lambda: any(run.glob("checkpoints/step-????????")))
    with spoiled(disk):
        error = the_error(process.wait(LIMIT_SECONDS))
        kept = find_checkpoint(run / "checkpoints", "latest")
    assert str(run) in error and (reason in error or (reason == "No space left" and "the disk is full" in error))
    assert kept.step >= 1

    steps = kept.step + 2
    again = attempt(options_of("cpu"), PRETRAIN, [str(config), f"train.steps={steps}"], output=tmp_path / "again")
    assert again.code == 0 and f"resumed at step {kept.step} from" in again.out, again.err[-3000:]
    assert [row["step"] for row in metrics(run) if "loss" in row] == list(range(1, steps + 1))
    what = "is full" if spoiled is full else "becomes read-only"
    record(fault=f"the shared disk {what}", sees=f"error: {error}", lost="the steps after the last checkpoint")
