"""DPO and KTO under two processes are those of one: the reference asked in shares, the KL of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from measured import assert_same_pair
from safetensors.torch import load_file
from tiny_chat import write_config, write_model
from tiny_pairs import RLHF, write_pairs
from tiny_run import metrics
from torch import Tensor

TOLERANCE = 2e-5
ENGINES = {"ddp": "cpu", "zero3": "cpu_zero3", "fsdp2": "fsdp2"}
FSDP_WORKER = Path(__file__).with_name("elastic_worker.py")
SECTIONS: dict[str, dict[str, Any]] = {
    "dpo": {"adapter": {"kind": "lora", "rank": 4}},
    "kto": {"preference": {"loss": "kto"}},
}
Trained = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run's folder of a loss under an engine (single, ddp, ...), trained once."""
    folder = tmp_path_factory.mktemp("preference")
    model = write_model(folder / "model", spread=0.1)
    pairs = write_pairs(folder / "pairs.jsonl", seed=1)

    def folder_of(loss: str, engine: str) -> Path:
        run = folder / f"{loss}_{engine}"
        if not run.exists():
            # Five packs a step: one of two processes gets one more than the other, which gets an empty one.
            sections: dict[str, Any] = {"preference": {}} | SECTIONS[loss]
            config = write_config(
                run,
                model,
                [pairs],
                data={"eval_fraction": 0.2},
                optim={"lr": 1e-3},
                train={"steps": 6, "global_batch_tokens": 5 * 128, "microbatch_tokens": 128},
                eval={"every": 5, "before_after": 9, "sample_tokens": 8},
                **sections,
            )
            if engine == "fsdp2":  # on a CPU a worker of ours allows it
                launch(FSDP_WORKER, [str(RLHF), str(run / "run"), str(config)], config="fsdp2", output=run / "process")
            else:
                launch(RLHF, [str(config)], config=ENGINES.get(engine), output=run / "process")
        return run / "run"

    return folder_of


def weights(run: Path) -> dict[str, Tensor]:
    (file,) = (run / "model").glob("*model*.safetensors")
    return load_file(file)


SLOW = (("dpo", "ddp"), ("dpo", "zero3"), ("kto", "zero3"), ("kto", "fsdp2"))
CASES = [("kto", "ddp"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("loss", "engine"), CASES)
def test_what_two_processes_train_is_that_of_one(trained: Trained, loss: str, engine: str) -> None:
    one, two = weights(trained(loss, "single")), weights(trained(loss, engine))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=TOLERANCE, msg=name)
    for value in ("loss", "eval_loss", "kl" if loss == "kto" else "margin"):
        found = [[row[value] for row in metrics(trained(loss, which)) if value in row] for which in ("single", engine)]
        assert found[0] and found[1] == pytest.approx(found[0], abs=1e-5, rel=1e-5), value


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("loss", "engine"), CASES)
def test_two_processes_measure_before_and_after_what_one_does(trained: Trained, loss: str, engine: str) -> None:
    tasks = {"kto": {"desirable", "undesirable"}, "dpo": {"held_out"}}[loss]
    answers = set() if engine == "fsdp2" else {"held_out_answers"}  # it has no rollouts
    assert_same_pair(trained(loss, "single"), trained(loss, engine), tasks | answers, tolerance=1e-3)
