"""Both stages of recipes/rlhf.py in two real processes that stay together from one stage to the next."""

from __future__ import annotations

from pathlib import Path

from launch import ROOT, launch
from tiny_run import metrics
from tiny_stages import write_config, write_inputs


def test_two_processes_run_both_stages_and_train_what_one_does(tmp_path: Path) -> None:
    inputs, found = write_inputs(tmp_path / "inputs"), []
    for number, engine in enumerate((None, "cpu")):
        config = write_config(tmp_path / str(number), inputs)
        ended = launch(ROOT / "recipes" / "rlhf.py", [str(config)], config=engine)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("policy stage: runs in") == 1
        rows = [row for row in metrics(tmp_path / str(number) / "run" / "policy") if "rollout_score" in row]
        assert (tmp_path / str(number) / "run" / "policy" / "model").is_dir()
        found.append([row["rollout_score"] for row in rows])
    one, two = found
    assert len(one) == 4 and max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-3
