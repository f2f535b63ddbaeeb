"""An adapter that goes on being trained by DPO, KTO, PPO and as a reward model, from base + adapter."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import some_logits, write_config, write_model, write_rows
from tiny_pairs import write_pairs
from tiny_run import RLHF, SFT, Ended, metrics, run_here

GOING_ON = {"kind": "lora", "continue": True}
STILL = {"lr": 1e-30, "warmup_steps": 0}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rows": {},  # of the tokens that our chat template brings
    "norms": {"modules_to_save": ["post_attention_layernorm"], "target": ["q_proj"]},
}


@pytest.fixture(scope="module", params=[pytest.param("lora", marks=pytest.mark.slow), "rows", "norms"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter changes what its base says, with pairs beside it."""
    folder = tmp_path_factory.mktemp("tuned")
    base = write_model(folder / "base", spread=0.2, chat=request.param != "rows")
    write_pairs(folder / "pairs.jsonl", seed=1, num_pairs=40)
    config = write_config(
        folder,
        base,
        [write_rows(folder / "rows.jsonl", seed=1, num_rows=40)],
        adapter={"kind": "lora", "rank": 4, "alpha": 8, **ADAPTERS[request.param]},
        train={"steps": 4},
        optim={"lr": 0.03, "warmup_steps": 0},
        eval={"every": None},
    )
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0, ended.err
    assert (byte_logits(folder / "run") - byte_logits(base)).abs().max() > 0.1
    return folder


def byte_logits(path: Path) -> torch.Tensor:
    return some_logits(path)[..., :256]  # of the bytes, which are in every tokenizer


def ran(folder: Path, tuned: Path, *overrides: str, **sections: Any) -> Ended:
    """A run in `folder` that goes on from the adapter."""
    keys: dict[str, Any] = {
        "data": {"eval_fraction": 0.25},
        "adapter": GOING_ON,
        "optim": STILL,
        "train": {"steps": 2},
        "checkpoint": {"every": 1},
        "eval": {"every": 1},
    }
    config = write_config(folder, tuned / "run", [tuned / "pairs.jsonl"], **keys | sections)
    ended = run_here(config, *overrides, recipe=RLHF)
    assert ended.code == 0, ended.err
    return ended


def check_export(folder: Path, tuned: Path) -> None:
    """The exported adapter is on the first base, and says what it said before."""
    first, second = (
        json.loads((each / "run" / "model" / "adapter_config.json").read_text()) for each in (tuned, folder)
    )
    names = ("base_model_name_or_path", "r", "lora_alpha", "modules_to_save")
    assert [second[name] for name in names] == [first[name] for name in names]
    torch.testing.assert_close(byte_logits(folder / "run"), byte_logits(tuned / "run"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss", "expected"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_the_reference_of_preferences_has_the_adapter(tuned: Path, tmp_path: Path, loss: str, expected: float) -> None:
    ran(tmp_path, tuned, preference={"loss": loss})
    rows = metrics(tmp_path / "run")
    for row in rows:
        for name in ("loss", "eval_loss"):
            assert row.get(name, expected) == pytest.approx(expected, abs=1e-4), row
        for name in ("eval_chosen_reward", "eval_rejected_reward", "kl"):
            assert row.get(name, 0.0) == pytest.approx(0.0, abs=1e-4), row
    check_export(tmp_path, tuned)


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_the_policys_reference_has_the_adapter(tuned: Path, tmp_path: Path, critic: str) -> None:
    ran(
        tmp_path,
        tuned,
        policy={"kl_coef": 0.1, "advantage": "gae", "critic": critic},
        rollout={"rewards": [{"name": "length", "target": 4}], "num_prompts": 4, "max_new_tokens": 6},
        train={"steps": 2, "microbatch_tokens": 512, "global_batch_tokens": 65536},
    )
    rows = [row for row in metrics(tmp_path / "run") if "kl" in row]
    assert rows
    for row in rows:
        assert row["kl"] == pytest.approx(0.0, abs=1e-4), row
    check_export(tmp_path, tuned)


def test_a_reward_model_goes_on_from_it(tuned: Path, tmp_path: Path) -> None:
    ran(tmp_path, tuned, reward={})
    settings = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tuned / "base") and settings["task_type"] == "SEQ_CLS"


def test_it_resumes_with_the_reference_that_it_started_with(tuned: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "preference": {},
        "optim": {"lr": 0.01, "warmup_steps": 0},
        "train": {"steps": 3},
        "checkpoint": {"every": 1, "keep": 3},
    }
    ran(tmp_path, tuned, **sections)
    whole = [row["eval_loss"] for row in metrics(tmp_path / "run") if "eval_loss" in row]
    for name in ("checkpoints/step-00000003", "checkpoints/step-00000002", "model"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "finished.yaml").unlink()
    (kept,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    again = ran(tmp_path, tuned, **sections)
    assert kept.name == "step-00000001" and "reference logprobs" in again.out and "found in" in again.out
    cut = [row["eval_loss"] for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert cut == pytest.approx(whole, rel=1e-5) and whole[-1] < whole[0]
