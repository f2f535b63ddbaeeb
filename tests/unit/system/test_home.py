"""What `~` means in a path that was given, and that nothing asks pathlib, which raises for a user who is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmtrain
from llmtrain.cli.main import main
from llmtrain.config.sections import RunConfig
from llmtrain.data.sources.files import resolve, whole_source
from llmtrain.system.paths import local_path


def test_a_home_is_filled_in_and_that_of_nobody_left_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/runs/x") == Path("/home/me/runs/x")
    assert local_path("~no-one/x") == Path("~no-one/x")
    assert local_path("runs/~") == Path("runs/~")


def test_a_run_goes_to_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell fills in `~` at the start of a word only, not in `run.dir=~/runs/x`."""
    monkeypatch.setenv("HOME", "/home/me")
    assert RunConfig(dir="~/runs/x").dir == "/home/me/runs/x"
    assert RunConfig(dir="runs/x/").dir == "runs/x/"


def test_all_of_a_folder_in_the_home_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As by `llmtrain eval --trained-on=~/data`, which read the files of its split `train` alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text('{"text": "x"}\n')
    assert len(resolve(whole_source("~/data")).paths) == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["report", "~no-one/run"],
        ["export", "~no-one/run"],
        ["merge", "~no-one/run", "out"],
        ["compare", "~no-one/a", "b"],
    ],
    ids=lambda argv: argv[0],
)
def test_verbs_take_a_home_of_nobody_for_a_folder_that_is_not_there(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ~no-one/") and error.count("\n") == 1, error


def test_nothing_asks_pathlib() -> None:
    package = Path(llmtrain.__file__).parent
    asking = [file for file in package.rglob("*.py") if ".expanduser()" in file.read_text(encoding="utf-8")]
    assert not asking, f"use llmtrain.system.paths.local_path in {asking}"
