"""recipes/pretrain.py from its command line to the model folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from tiny_run import Ended, command, environment, metrics, run, run_here

from llmtrain.train.checkpoint import Checkpoint


def ran(config: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides)
    assert ended.code == 0, ended.err
    return ended


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def saved(folder: Path, step: int, kind: str = "model") -> dict[str, torch.Tensor]:
    """Weights of a checkpoint by the names that they are exported under."""
    checkpoint = Checkpoint(folder / "checkpoints" / f"step-{step:08d}")
    return {name.removeprefix("model."): tensor for name, tensor in checkpoint.read_all(kind).items()}


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_run_leaves_its_folder_as_described(config: Path) -> None:
    folder = config.parent / "run"
    ended = ran(config)
    assert ended.err == ""
    assert f"finished: {folder}/model" in ended.out
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "environment.json",
        "ledger.json",
        "metrics.jsonl",
        "finished.yaml",
        "model",
        "outline",
        "train.log",
    }
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]
    rows = metrics(folder)
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 5, 10]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert losses[0] > losses[1] > losses[2]
    assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["beta2"] == 0.95


def test_the_command_line_trains_what_runs_in_this_process_and_in_a_forked_one_train(config: Path) -> None:
    ran(config, f"run.dir={config.parent}/here")
    forked = run(config, f"run.dir={config.parent}/forked")
    arguments = command(config, f"run.dir={config.parent}/alone")
    alone = subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert (forked.code, forked.err) == (alone.returncode, alone.stderr) == (0, "")
    for name in ("forked", "alone"):
        assert_equal_weights(exported(config.parent / name), exported(config.parent / "here"))


def test_the_ledger_says_what_was_trained_on(config: Path) -> None:
    ran(config)
    folder = config.parent / "run"
    training = json.loads((folder / "ledger.json").read_text())["training"]
    assert training["steps"] == training["steps_planned"] == 10
    assert training["tokens_trained"] == metrics(folder)[-2]["tokens"]


def test_the_same_command_again_finishes_at_once_and_says_so(config: Path) -> None:
    ran(config)
    folder = config.parent / "run"
    rows, weights = metrics(folder), exported(folder)
    ended = ran(config)
    assert f"resumed at step 10 from {folder}/checkpoints/step-00000010, 0 steps left" in ended.out
    assert f"finished: {folder}/model" in ended.out
    assert metrics(folder) == rows
    assert_equal_weights(exported(folder), weights)


def test_a_finished_run_goes_on_when_given_more_steps(config: Path) -> None:
    ran(config)
    ended = ran(config, "train.steps=14")
    assert "resumed at step 10" in ended.out
    assert [row["step"] for row in metrics(config.parent / "run") if "loss" in row] == list(range(1, 15))


def test_the_average_is_exported_where_one_is_kept(config: Path) -> None:
    ran(config, "train.ema_decay=0.9")
    folder = config.parent / "run"
    assert_equal_weights(exported(folder), saved(folder, 10, "ema"))
    assert not torch.equal(saved(folder, 10)["model.norm.weight"], exported(folder)["model.norm.weight"])


def test_a_run_that_gets_worse_stops_and_exports_its_best_weights(config: Path) -> None:
    ended = ran(
        config,
        "train.steps=60",
        "optim={lr: 0.3, schedule: constant, max_grad_norm: null, warmup_steps: 30}",
        "eval={every: 2, patience: 2}",
        "checkpoint={best: true, export_best: true, keep: 1}",
    )
    folder = config.parent / "run"
    assert f"stopped early: {folder}/model" in ended.out
    losses = {row["step"]: row["eval_loss"] for row in metrics(folder) if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 4
    assert_equal_weights(exported(folder), saved(folder, best))


def test_l1_leaves_exact_zeros_in_the_matrices_alone(config: Path) -> None:
    ran(config, "optim.l1=0.3")
    weights = exported(config.parent / "run")
    zeros = {name: float((tensor == 0).float().mean()) for name, tensor in weights.items()}
    matrices = [share for name, share in zeros.items() if name.endswith("_proj.weight")]
    assert min(matrices) > 0.05 and sum(zeros.values()) == sum(matrices)


def test_each_step_sees_other_samples_and_another_seed_another_order(config: Path) -> None:
    ran(config, "train.steps=2", "optim.lr=1e-9")
    one = [row["loss"] for row in metrics(config.parent / "run") if "loss" in row]
    ran(config, "train.steps=2", "optim.lr=1e-9", f"run.dir={config.parent}/other", "run.seed=1")
    other = [row["loss"] for row in metrics(config.parent / "other") if "loss" in row]
    assert len({*one, *other}) == 4


def test_epochs_pass_over_every_token_once(config: Path) -> None:
    ran(config, "train={epochs: 1, steps: null}", "eval.every=null")
    training = json.loads((config.parent / "run" / "ledger.json").read_text())["training"]
    assert training["epochs"] >= 1
    assert training["tokens_trained"] >= training["tokens_per_epoch"]
