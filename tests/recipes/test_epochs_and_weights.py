"""What is asked of stored data holds in every recipe that has some: its epochs, its weights, its order on resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import write_config, write_model, write_rows
from tiny_pairs import write_pairs
from tiny_run import RLHF, SFT, Ended, metrics, run_here

STAGES: dict[str, dict[str, Any]] = {
    "sft": {},
    "reward": {"reward": {}},
    "dpo": {"preference": {}},
    "kto": {"preference": {"loss": "kto"}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model, rows and pairs, many and few."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "chat", spread=0.1)
    write_rows(folder / "sft.jsonl", seed=1)
    write_pairs(folder / "pairs.jsonl", seed=1)
    write_pairs(folder / "few-pairs.jsonl", seed=2, num_pairs=3)
    (folder / "few-sft.jsonl").write_text("".join((folder / "sft.jsonl").read_text().splitlines(True)[:2]))
    return folder


def source_of(stage: str, inputs: Path, *, few: bool = False) -> Path:
    return inputs / ("few-" * few + ("sft.jsonl" if stage == "sft" else "pairs.jsonl"))


def config_of(stage: str, folder: Path, inputs: Path, sources: Sequence[Any], **train: Any) -> Path:
    sections = {"data": {"eval_fraction": 0}, "eval": {"every": None}, "train": train, **STAGES[stage]}
    return write_config(folder, inputs / "chat", sources, **sections)


def ran(stage: str, config: Path, *overrides: str) -> tuple[Ended, dict[str, Any], list[dict[str, Any]]]:
    """How a run ended, its account of training, its rows."""
    ended = run_here(config, *overrides, recipe=SFT if stage == "sft" else RLHF)
    assert ended.code == 0, ended.err
    folder = config.parent / "run"
    rows = [row for row in metrics(folder) if "loss" in row]
    return ended, json.loads((folder / "ledger.json").read_text())["training"], rows


@pytest.mark.parametrize("stage", STAGES)
def test_an_epoch_is_every_pack_once(inputs: Path, tmp_path: Path, stage: str) -> None:
    config = config_of(stage, tmp_path, inputs, [source_of(stage, inputs)])
    batch = "train.global_batch_tokens=1408"  # 11 packs: no stage has a multiple of them
    ended, training, rows = ran(stage, config, "train.steps=null", "train.epochs=1", batch)
    assert training["packs_per_epoch"] % training["packs_per_step"]
    assert training["epochs"] == 1
    assert training["tokens_trained"] == training["tokens_per_epoch"]
    assert training["packs"] == training["packs_per_epoch"]
    assert rows[-1]["epoch"] == 1
    assert len(rows) == training["steps"] == training["steps_planned"]
    assert f"training: 1 epoch of {training['packs']} packs" in ended.out


@pytest.mark.parametrize("stage", STAGES)
def test_a_weight_is_a_share_of_the_tokens(inputs: Path, tmp_path: Path, stage: str) -> None:
    sources = [{"path": str(source_of(stage, inputs, few=few)), "weight": 1} for few in (True, False)]
    config = config_of(stage, tmp_path, inputs, sources, steps=6, global_batch_tokens=6400)
    _, training, rows = ran(stage, config)
    few, many = training["sources"]
    assert few["tokens"] / (few["tokens"] + many["tokens"]) == pytest.approx(0.5, abs=0.03)
    assert few["times_read"] > 5 * many["times_read"]
    assert many["times_read"] < rows[-1]["epoch"] < few["times_read"]
    sizes = [each["tokens"] / each["times_read"] for each in (few, many)]
    assert rows[-1]["epoch"] == pytest.approx((few["tokens"] + many["tokens"]) / sum(sizes), rel=1e-3)
    if stage == "kto":  # the reference of an answer is that of the same answer, in whatever pass it comes
        assert rows[0]["kl"] == 0 and rows[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    if stage == "dpo":
        assert rows[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_a_run_of_another_order_is_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("sft", tmp_path, inputs, [source_of("sft", inputs)], steps=1)
    with monkeypatch.context() as patched:
        patched.setattr("llmtrain.recipes.model.ORDER_VERSION", 1)
        ran("sft", config)
    ended = run_here(config, "train.steps=2", recipe=SFT)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "packing.order was 1 and is 2 now" in ended.err
