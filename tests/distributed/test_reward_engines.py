"""A reward model under two processes is that of one: all weights and an adapter, under every engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from safetensors.torch import load_file
from tiny_chat import write_config, write_model
from tiny_pairs import RLHF, write_pairs
from tiny_run import metrics
from torch import Tensor

TOLERANCE = 2e-5
ENGINES = {"ddp": "cpu", "zero2": "cpu_zero2", "zero3": "cpu_zero3"}
SECTIONS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"adapter": {"kind": "lora", "rank": 4}}}
QUICK = (("lora", "ddp"), ("full", "zero2"))
CASES = [
    pytest.param(kind, engine, marks=() if (kind, engine) in QUICK else pytest.mark.slow)
    for kind in SECTIONS
    for engine in ENGINES
]
Trained = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run's folder of what is trained (full, lora) under an engine (single, ddp, ...), trained once."""
    folder = tmp_path_factory.mktemp("reward")
    model = write_model(folder / "model")
    pairs = write_pairs(folder / "pairs.jsonl", seed=1)

    def folder_of(kind: str, engine: str) -> Path:
        run = folder / f"{kind}_{engine}"
        if not run.exists():
            # Five packs a step: one of two processes gets one more than the other, which gets an empty one.
            config = write_config(
                run,
                model,
                [pairs],
                reward={"centering": 0.01},
                data={"eval_fraction": 0.2},
                optim={"lr": 1e-3},
                train={"steps": 6, "global_batch_tokens": 5 * 128, "microbatch_tokens": 128},
                **SECTIONS[kind],
            )
            launch(RLHF, [str(config)], config=ENGINES.get(engine), output=run / "process")
        return run / "run"

    return folder_of


def weights(run: Path) -> dict[str, Tensor]:
    (file,) = (run / "model").glob("*model*.safetensors")
    return load_file(file)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "engine"), CASES)
def test_what_two_processes_train_is_that_of_one(trained: Trained, kind: str, engine: str) -> None:
    one, two = weights(trained(kind, "single")), weights(trained(kind, engine))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=TOLERANCE, msg=name)
    losses = [[row["loss"] for row in metrics(trained(kind, which)) if "loss" in row] for which in ("single", engine)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=() if name == "zero2" else pytest.mark.slow) for name in ENGINES]
)
def test_what_two_processes_find_of_held_out_pairs_is_that_of_one(trained: Trained, engine: str) -> None:
    cards = [json.loads((trained("full", which) / "reward_card.json").read_text()) for which in ("single", engine)]
    for name in ("pairs", "accuracy", "accuracy_low", "auc"):
        assert cards[1][name] == pytest.approx(cards[0][name], abs=1e-9), name
    for name in ("loss", "mean_margin"):
        assert cards[1][name] == pytest.approx(cards[0][name], abs=1e-4), name
