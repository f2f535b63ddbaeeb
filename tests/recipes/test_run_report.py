"""Recipes write their report at the end, also after an interrupt, and `llmtrain report` writes it again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tiny_run import metrics, run_here, start

from llmtrain.cli.main import main


def test_a_run_ends_with_the_path_of_its_report(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config.parent / "run"
    done = run_here(config, "log.report=true", "run.push_to_hub=null")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "It finished all of its 10 steps." in text
    assert "Not shown" not in text
    (folder / "report.html").unlink()
    main(["report", str(folder)])
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8") == text


def test_a_run_that_is_stopped_reports_how_far_it_came(config: Path) -> None:
    folder, process = config.parent / "run", start(config, "log.report=true", "train.steps=100000", "eval.every=null")
    assert process.wait_until(lambda: len(metrics(folder)) > 3)
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 75
    assert f"report: {folder / 'report.html'}\n" in ended.out
    assert "It was stopped" in (folder / "report.html").read_text(encoding="utf-8")


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path} has no config.yaml: it is not the folder of a run\n"
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "none")])
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such folder\n"
