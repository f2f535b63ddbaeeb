"""Instruction tuning under two processes is that of one: all weights and an adapter, under every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launch import accelerate, ended_well, launch, options_of
from measured import assert_same_pair
from safetensors.torch import load_file
from tiny_chat import write_config, write_model, write_rows
from tiny_run import SFT, metrics
from torch import Tensor
from transformers import AutoModelForCausalLM

TOLERANCE = 2e-5
ENGINES = {"ddp": "cpu", "zero2": "cpu_zero2", "zero3": "cpu_zero3", "fsdp2": "fsdp2"}
FSDP_WORKER = Path(__file__).with_name("elastic_worker.py")
SECTIONS = {
    "full": {"optim": {"lr": 1e-3}},
    "lora": {"optim": {"lr": 1e-2}, "adapter": {"kind": "lora", "rank": 4}},
}
QUICK = (("lora", "zero2"), ("full", "zero3"))
SLOW = (("lora", "ddp"), ("lora", "zero3"), ("full", "fsdp2"))
SOAK = (("full", "ddp"), ("full", "zero2"))
CASES = [
    *QUICK,
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    *(pytest.param(*case, marks=pytest.mark.soak) for case in SOAK),
]
Tuned = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """The run's folder of what is tuned (full, lora) under an engine (single, ddp, ...), trained once."""
    folder = tmp_path_factory.mktemp("sft")
    model = write_model(folder / "model")
    rows = write_rows(folder / "rows.jsonl", seed=1)

    def folder_of(kind: str, engine: str) -> Path:
        run = folder / f"{kind}_{engine}"
        if not run.exists():
            measured = {"every": 5, "before_after": 16, "sample_tokens": 8}
            config = write_config(run, model, [rows], eval=measured, **SECTIONS[kind])
            if engine == "fsdp2":  # on a CPU a worker of ours allows it
                launch(FSDP_WORKER, [str(SFT), str(run / "run"), str(config)], config="fsdp2", output=run / "process")
            else:
                launch(SFT, [str(config)], config=ENGINES.get(engine), output=run / "process")
        return run / "run"

    return folder_of


def weights(run: Path) -> dict[str, Tensor]:
    (file,) = (run / "model").glob("*model*.safetensors")
    return load_file(file)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "engine"), CASES)
def test_what_two_processes_save_is_whole_and_that_of_one(tuned: Tuned, kind: str, engine: str) -> None:
    one, two = weights(tuned(kind, "single")), weights(tuned(kind, engine))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=TOLERANCE, msg=name)
    rows = [metrics(tuned(kind, which)) for which in ("single", engine)]
    for value in ("loss", "error_rate", "epoch", "eval_loss", "eval_error_rate"):
        found = [[row[value] for row in of_run if value in row] for of_run in rows]
        assert found[1] == pytest.approx(found[0], abs=1e-5), value


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "engine"), CASES)
def test_two_processes_measure_before_and_after_what_one_does(tuned: Tuned, kind: str, engine: str) -> None:
    answers = set() if engine == "fsdp2" else {"held_out_answers"}  # it has no rollouts
    assert_same_pair(tuned(kind, "single"), tuned(kind, engine), {"held_out"} | answers, tolerance=1e-3)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "engine", [pytest.param("ddp", marks=pytest.mark.slow), "zero2", pytest.param("zero3", marks=pytest.mark.soak)]
)
def test_the_launcher_trains_to_the_bit_what_forked_processes_train(tuned: Tuned, tmp_path: Path, engine: str) -> None:
    forked = tuned("lora", engine)
    overrides = [f"run.dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]
    config = [str(forked.parent / "config.yaml"), *overrides]
    ended_well(accelerate(options_of(ENGINES[engine]), SFT, config))
    one, other = weights(forked), weights(tmp_path / "run")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_what_zero3_saves_loads(tuned: Tuned, kind: str) -> None:
    from peft import AutoPeftModelForCausalLM

    folder = tuned(kind, "zero3") / "model"
    loader = AutoPeftModelForCausalLM if kind == "lora" else AutoModelForCausalLM
    logits = loader.from_pretrained(folder)(torch.arange(10)[None]).logits
    assert torch.isfinite(logits).all()
