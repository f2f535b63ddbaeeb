"""A run's folder has one writer: a second launch is refused, a dead one is taken over, one taken over stops."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_run import Started, metrics, run_here, start

from llmtrain.system.lease import this_process

LONG = ("train.steps=100000", "eval.every=null", "checkpoint.every=3")


@pytest.fixture
def training(config: Path) -> Started:
    """A run that has saved a checkpoint, in a process of its own."""
    process = start(config, *LONG)
    assert process.wait_until(lambda: bool(list(run_folder(config).glob("checkpoints/step-*[0-9]")))), process.wait()
    return process


def run_folder(config: Path) -> Path:
    return Path(yaml.safe_load(config.read_text())["run"]["dir"])


def test_a_second_launch_is_refused_by_naming_the_first(config: Path, training: Started, tmp_path: Path) -> None:
    folder = run_folder(config)
    (tmp_path / "link").symlink_to(folder)
    try:
        for spelling in (folder, tmp_path / "link"):
            ended = run_here(config, f"run.dir={spelling}", *LONG)
            assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
            assert f"run.dir={spelling} is in use by process {training._process.pid} on " in ended.err
    finally:
        training.kill()


def test_after_a_kill_the_run_goes_on_at_once_and_leaves_no_lease(config: Path, training: Started) -> None:
    pid = training._process.pid
    training.kill()
    steps = metrics(run_folder(config))[-1]["step"] + 2
    ended = run_here(config, f"train.steps={steps}", *LONG[1:])
    assert ended.code == 0 and "resumed at step" in ended.out, ended.err
    assert f"taken over from process {pid} on " in ended.out
    assert not list(run_folder(config).glob("lease-*"))


def test_a_run_that_was_taken_over_stops_before_it_writes(config: Path, training: Started) -> None:
    folder = run_folder(config)
    other = replace(this_process(), host="node7")
    (folder / "lease-000002.json").write_text(json.dumps(vars(other) | {"beats": 0, "heartbeat": ""}))
    ended = training.wait()
    assert ended.code == 2 and "was taken over by process" in ended.err and "node7" in ended.err, ended.err
    assert ended.err.count("\n") == 1
    assert (folder / "lease-000002.json").exists() and not (folder / "lease-000001.json").exists()
    assert not (folder / "model").exists() and not list(folder.glob("checkpoints/*.partial"))
    (event,) = (folder / "events.jsonl").read_text().splitlines()  # none of what happened after the folder was lost
    assert json.loads(event)["event"] == "started"


def test_a_signal_saves_and_gives_the_folder_back(config: Path, training: Started) -> None:
    training.send(signal.SIGTERM)
    ended = training.wait()
    assert ended.code == 75 and not list(run_folder(config).glob("lease-*")), ended.err


def test_bad_data_leaves_no_folder(config: Path, tmp_path: Path) -> None:
    ended = run_here(config, f"data.train={tmp_path}/nothing.jsonl", f"run.dir={tmp_path}/refused")
    assert ended.code == 2 and not (tmp_path / "refused").exists(), ended.err
