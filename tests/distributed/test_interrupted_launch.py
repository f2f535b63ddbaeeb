"""The real `accelerate launch` of two processes: signals save, and a rank's error is the last line of the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launch import LIMIT_SECONDS, accelerate, clean_environment, command, options_of
from tiny_run import PRETRAIN, Ended, write_config, write_corpus, write_tokenizer

pytestmark = pytest.mark.slow
FAULTY = Path(__file__).with_name("faulty.py")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(
        tmp_path,
        write_tokenizer(tmp_path / "tokenizer"),
        [write_corpus(tmp_path / "corpus.jsonl", seed=1)],
        train={"steps": 100_000},
        eval={"every": None},
        checkpoint={"every": None},
    )


def test_a_refusal_is_the_last_line_of_the_launchers_report(config: Path) -> None:
    ended = accelerate(options_of("cpu"), PRETRAIN, [str(config), "data.train=nothing.jsonl"])
    assert ended.code == 1
    refused = "error: data.train[0]=nothing.jsonl: no such file or folder"
    *_, last, border = ended.err.strip().splitlines()
    assert last.strip() == f"traceback : {refused}" and set(border) == {"="}


def test_the_error_of_the_rank_that_failed_is_the_last_line_of_the_launchers_report(config: Path) -> None:
    ended = accelerate(options_of("cpu"), FAULTY, ["raise_error", "1", str(PRETRAIN), str(config)])
    assert ended.code == 1
    *_, last, border = ended.err.strip().splitlines()
    assert last.strip() == "traceback : ZeroDivisionError: a fault on purpose" and set(border) == {"="}
    assert len([line for line in ended.err.splitlines() if line.startswith("stopped: rank 1 (")]) == 1


def test_sigterm_to_the_launcher_saves_without_a_traceback_of_ours(config: Path) -> None:
    ended = ended_by(signal.SIGTERM, config)
    assert_saved(config, ended)
    assert ended.err.count("Traceback") == 1 and "SignalException" in ended.err  # torchrun's own


def test_ctrl_c_in_the_launchers_terminal_saves_in_every_process(config: Path) -> None:
    ended = ended_by(signal.SIGINT, config)
    assert_saved(config, ended)
    assert ended.err.count("Ctrl-C: ending this step, saving, then stopping") == 1


def assert_saved(config: Path, ended: Ended) -> None:
    rows = config.parent / "run" / "metrics.jsonl"
    step = max(json.loads(line)["step"] for line in rows.read_text(encoding="utf-8").splitlines())
    (saved,) = (config.parent / "run" / "checkpoints").glob("step-????????")
    assert saved.name == f"step-{step:08d}"
    assert ended.out.endswith(
        f"interrupted after step {step}, which is saved; start the same command again to continue\n"
    )


def ended_by(number: signal.Signals, config: Path) -> Ended:
    """A launch that gets a signal in training: SIGINT as from its terminal, others the launcher alone."""
    rows = config.parent / "run" / "metrics.jsonl"
    pipe = subprocess.PIPE
    argv = command(PRETRAIN, [str(config)], options_of("cpu"))
    with subprocess.Popen(
        argv, stdout=pipe, stderr=pipe, text=True, env=clean_environment(), start_new_session=True
    ) as launcher:
        try:
            deadline = time.monotonic() + LIMIT_SECONDS
            while not (rows.exists() and '"loss"' in rows.read_text(encoding="utf-8")):
                assert launcher.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            (os.killpg if number == signal.SIGINT else os.kill)(launcher.pid, number)
            out, err = launcher.communicate(timeout=LIMIT_SECONDS)
        finally:
            launcher.terminate()
    return Ended(launcher.returncode, out, err)
