"""recipes/pretrain.py from its command line to the model folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import Ended, command, environment, metrics, run, run_here, write_config, write_tokenizer
from tokenizers import Regex, Tokenizer, normalizers

from llmtrain.eval.next_token import HeldOut
from llmtrain.runs.folder import FINISHED
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
        "events.jsonl",
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
    error_rates = [row["eval_error_rate"] for row in rows if "eval_loss" in row]
    assert 1 >= error_rates[0] > error_rates[2] > 0
    assert all(0 < row["error_rate"] <= 1 for row in rows if "loss" in row)
    epochs = [row["epoch"] for row in rows]
    assert epochs[0] == 0 and epochs == sorted(epochs)
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
    assert f"run.dir={folder}: this run is finished" in ran(config).out
    assert metrics(folder) == rows
    assert_equal_weights(exported(folder), weights)


def test_a_finished_run_is_exported_again_from_its_last_checkpoint(config: Path) -> None:
    ran(config)
    folder = config.parent / "run"
    rows, weights = metrics(folder), exported(folder)
    (folder / FINISHED).unlink()
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


def test_a_run_goes_on_when_its_data_was_moved_renamed_and_touched_but_not_when_it_was_edited(config: Path) -> None:
    given = yaml.safe_load(config.read_text())["data"]["train"]
    path = Path(given[0]["path"] if isinstance(given[0], dict) else given[0])
    first, moved = config.parent / "first.jsonl", config.parent / "data" / "renamed.jsonl"
    moved.parent.mkdir()
    shutil.copy(path, first)
    ran(config, f"data.train={first}")
    first.rename(moved)
    os.utime(moved, (5, 5))
    ended = ran(config, f"data.train={moved}", "train.steps=12")
    assert "resumed at step 10" in ended.out and "tokenizing" not in ended.out
    moved.write_text("".join(reversed(moved.read_text().splitlines(keepends=True))))
    ended = run_here(config, f"data.train={moved}", "train.steps=14")
    assert ended.code == 2 and "the data changed" in ended.err and ended.err.count("\n") == 1


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


@pytest.mark.parametrize(
    ("normalizer", "text", "lost"),
    [
        (None, "Alpha\n\nbeta  É", None),
        (normalizers.Lowercase(), "Alpha beta", "'A' (U+0041, "),
        (normalizers.NFD(), "caf\u00e9 beta", "'é' (U+00E9, "),
        (normalizers.Replace(Regex(r"\s+"), " "), "a\n\nb", r"'\n' (U+000A, "),
    ],
    ids=["lossless", "lower case", "decomposed", "white space"],
)
def test_bits_per_byte_are_left_out_if_the_tokenizer_loses_text(
    tmp_path: Path, normalizer: normalizers.Normalizer | None, text: str, lost: str | None
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.save(str(tokenizer / "tokenizer.json"))
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(f"{json.dumps({'text': f'{text} {i}'})}\n" for i in range(200)))
    config = write_config(tmp_path / "given", tokenizer, [corpus], train={"steps": 1})
    for _ in range(2):  # a store that is found says the same
        ended = ran(config, "run.resume=auto", f"run.dir={tmp_path / f'run{_}'}")
        evaluated = [row for row in metrics(tmp_path / f"run{_}") if "eval_loss" in row]
        assert all(("eval_bits_per_byte" in row) == (lost is None) for row in evaluated) and evaluated
        assert ("no eval_bits_per_byte" in ended.out) == (lost is not None)
        assert lost is None or lost in ended.out


@pytest.mark.parametrize(("epochs", "batch"), [(1, 256), (1, 4096), (2.5, 256)])
def test_a_run_trains_its_epochs_and_reports_them(config: Path, epochs: float, batch: int) -> None:
    ran(config, "train.steps=null", f"train.epochs={epochs}", f"train.global_batch_tokens={batch}", "eval.every=null")
    training = json.loads((config.parent / "run" / "ledger.json").read_text())["training"]
    assert training["epochs"] == pytest.approx(epochs, abs=0.5 / training["packs_per_epoch"])
    assert training["packs"] == round(epochs * training["packs_per_epoch"])
    rows = [row for row in metrics(config.parent / "run") if "loss" in row]
    assert rows[-1]["epoch"] == training["epochs"]
    if isinstance(epochs, int):
        assert training["tokens_trained"] == epochs * training["tokens_per_epoch"]


def test_weighted_sources_are_said_and_accounted_for_in_tokens(config: Path, tmp_path: Path) -> None:
    small, tree = tmp_path / "small.jsonl", yaml.safe_load(config.read_text())
    small.write_text('{"text": "a b"}\n' * 3)
    tree["data"] |= {"train": [{"path": str(small), "weight": 1}, {"path": tree["data"]["train"][0], "weight": 1}]}
    config.write_text(yaml.safe_dump(tree))
    ended = ran(config, "train.steps=60", "data.eval_fraction=0", "eval.every=null")
    first, second = json.loads((config.parent / "run" / "ledger.json").read_text())["training"]["sources"]
    assert first["tokens"] == pytest.approx(second["tokens"], rel=0.05)
    assert first["tokens"] + second["tokens"] == pytest.approx(60 * 256, rel=0.05)
    assert f"data.train[0] ({small}): 5" in ended.out or f"data.train[0] ({small}): 4" in ended.out
    assert f"read {first['times_read']:.4g} times" in ended.out


@pytest.mark.parametrize("lengths", [[200] + [1] * 60, [20] * 20, [250, 3, 3, 90]], ids=str)
def test_mfu_counts_the_tokens_that_each_token_attends_to(tmp_path: Path, lengths: list[int]) -> None:
    """All packs in one step; by the mean length, a token of a long document would count as one of a short one."""
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(f"{json.dumps({'text': 'x' * length})}\n" for length in lengths))
    settings = {"data": {"max_seq_len": 256, "eval_fraction": 0}, "eval": {"every": None}}
    train = {"steps": None, "epochs": 1, "global_batch_tokens": 256 * 8, "microbatch_tokens": 256 * 8}
    config = write_config(
        tmp_path / "given", write_tokenizer(tmp_path / "tokenizer"), [corpus], train=train, **settings
    )
    ran(config)
    (row,) = (row for row in metrics(tmp_path / "given" / "run") if "loss" in row)
    peak = json.loads((tmp_path / "given" / "run" / "environment.json").read_text())["peak_flops"]
    flops_per_token = row["mfu"] * peak / row["tokens_per_second"]
    ends = np.cumsum([length + 1 for length in lengths])  # EOS
    total = int(ends[-1])
    bounds = sorted({0, *ends.tolist(), *range(0, total, 256)})
    attended = sum(length * (length + 1) / 2 for length in np.diff(bounds).tolist())
    head, body = 320 * 32, 3 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 96) + 7 * 32
    trained = total - len(lengths)
    assert flops_per_token == pytest.approx((6 * (body * total + head * trained) + 12 * 3 * 32 * attended) / total)


def test_muon_moves_each_matrix_of_a_gpt2_by_its_own_orthogonal_update(config: Path) -> None:
    """Of Conv1D, whose weights are (in, out), and of query, key and value, which lie side by side in one."""
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "n_positions": 512}
    tree = yaml.safe_load(config.read_text())
    tree["model"] = {"architecture": "gpt2", "config": model}
    config.write_text(yaml.safe_dump(tree))
    ran(config, "optim.name=muon", "optim.weight_decay=0", "checkpoint.every=1", "checkpoint.keep=3", "train.steps=2")
    folder = config.parent / "run"
    before, after = saved(folder, 1), saved(folder, 2)
    (lr,) = (row["lr"] for row in metrics(folder) if row["step"] == 2 and "lr" in row)
    moved = {n.split(".h.0.")[1]: (after[n] - before[n]).T for n in after if ".h.0." in n and after[n].ndim == 2}
    for part in moved.pop("attn.c_attn.weight").chunk(3):
        values = torch.linalg.svdvals(part) / lr
        assert values.median() > 0.6 and values.max() < 1.3  # a gradient may lack a direction
    assert len(moved) == 3
    for update in moved.values():
        values = torch.linalg.svdvals(update) / lr / max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        assert values.median() > 0.6 and values.max() < 1.3  # a gradient may lack a direction


def test_a_run_without_a_finite_held_out_loss_has_no_best_and_can_still_export_its_last(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(HeldOut, "__call__", lambda held_out, model, should_stop: {"eval_loss": float("nan")})
        ended = run_here(config, "checkpoint.best=true", "checkpoint.export_best=true")
    assert ended.code == 2 and "no held-out loss of this run was finite" in ended.err
    assert not (config.parent / "run" / "model").exists()
    ran(config, "checkpoint.best=true", "checkpoint.export_best=false")
    assert_equal_weights(exported(config.parent / "run"), saved(config.parent / "run", 10))
