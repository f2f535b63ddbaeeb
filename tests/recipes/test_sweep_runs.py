"""A search over real runs of a recipe, through its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_chat import write_config, write_model, write_rows
from tiny_run import SFT, environment, metrics, run_here


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", seed=1)
    return folder


def sweep(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmtrain", "sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600, check=False)


@pytest.mark.timeout(600)
def test_a_sweep_finds_the_better_learning_rate_and_its_best_configuration_runs(inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs / "model", [inputs / "rows.jsonl"], train={"steps": 4})
    (tmp_path / "space.yaml").write_text("optim.lr: [1e-6, 0.01]\n")
    folder = tmp_path / "sweep"
    ended = sweep(
        config, tmp_path / "space.yaml", "--sampler", "grid", "--dir", folder, "--recipe", "sft", "log.every=2"
    )
    assert ended.returncode == 0, ended.stderr
    assert "best: trial 1" in ended.stdout
    assert (folder / "sweep.html").is_file()
    assert yaml.safe_load((folder / "best.yaml").read_text())["optim"]["lr"] == 0.01
    again = run_here(folder / "best.yaml", recipe=SFT)
    assert again.code == 0, again.err
    losses = [[row["eval_loss"] for row in metrics(run) if "eval_loss" in row] for run in folder.glob("**/trials/0001")]
    assert [row["eval_loss"] for row in metrics(folder / "best") if "eval_loss" in row] == losses[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_auto_beats_a_learning_rate_that_is_far_too_low(inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs / "model", [inputs / "rows.jsonl"], optim={"lr": 1e-4})
    ended = sweep(config, "--auto", "--trials", 3, "--dir", tmp_path / "sweep", "--recipe", "sft")
    assert ended.returncode == 0, ended.stderr
    assert "--auto: the model has 26,912 weights" in ended.stdout
    trials = [metrics(tmp_path / "sweep" / "trials" / f"{number:04d}")[-1]["eval_loss"] for number in range(3)]
    assert min(trials) < 0.8 * trials[0], "trial 0 is the configuration as it is"
    assert yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())["optim"]["lr"] > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give SPACE.yaml, which says what varies, or --auto"),
        (["space.yaml", "--auto"], "give it or space.yaml, not both"),
        (["space.yaml", "--trials", "0"], "--trials=0: must be a number above 0"),
        (["space.yaml", "--tokens", "inf"], "--tokens=inf: must be a number above 0"),
        (["space.yaml", "log.every=2", "other.yaml"], "give one SPACE.yaml, not space.yaml and other.yaml"),
        (["log.every=2", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_line(
    inputs: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmtrain.cli.main import main

    config = write_config(tmp_path, inputs / "model", [inputs / "rows.jsonl"])
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(config), *arguments, "--recipe", "sft"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
