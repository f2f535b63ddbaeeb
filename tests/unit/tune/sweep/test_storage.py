"""The journal of a sweep survives the kill of who writes it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import optuna
import pytest
from tiny_run import fork

from llmtrain.tune.sweep.storage import JOURNAL, StudyLock, open_storage


def study(folder: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(folder, StudyLock(folder))
    return optuna.create_study(study_name="sweep", storage=storage, load_if_exists=True)


def hold(folder: Path) -> None:
    """Take the lock and be killed with it."""
    StudyLock(folder).acquire()
    (folder / "held").touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(60)
def test_a_holder_of_the_lock_that_was_killed_blocks_nobody(tmp_path: Path) -> None:
    study(tmp_path).ask()
    assert fork(hold, tmp_path, output=tmp_path / "holder").wait().code == -signal.SIGKILL
    assert (tmp_path / "held").exists()
    study(tmp_path).ask()
    assert len(study(tmp_path).trials) == 2


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    study(tmp_path).ask()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"torn')
    study(tmp_path).ask()
    assert len(study(tmp_path).trials) == 2


def test_the_lock_may_be_taken_again_by_who_has_it(tmp_path: Path) -> None:
    lock = StudyLock(tmp_path)
    with lock, lock:
        pass
    with StudyLock(tmp_path):
        pass
