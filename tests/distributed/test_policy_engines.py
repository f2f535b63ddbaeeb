"""PPO under two processes is that of one, under every engine: updates on recorded experience, and live runs.

In the live runs ranks have unequally many samples, whose responses end at different lengths.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launch import ROOT, launch, launch_with
from measured import assert_same_pair
from policy_worker import KINDS, NEW_TOKENS
from safetensors.torch import load_file
from tiny_rl import LETTERS, write_config, write_task
from tiny_run import RLHF, Ended, metrics, run_here
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmtrain.train.checkpoint import Checkpoint

WORKER = Path(__file__).with_name("policy_worker.py")
ENGINES = {"ddp": "cpu", "zero2": "cpu_zero2", "zero3": "cpu_zero3"}
TOLERANCE = 1e-6
STEPS = 6
LIVE: dict[str, dict[str, Any]] = {
    "full": {"policy": {"kl_coef": 0.05, "critic": "separate"}},
    "lora": {
        "policy": {"kl_coef": 0.05},
        "rollout": {"old_logprobs": "sampler"},
        "adapter": {"kind": "lora", "rank": 4, "alpha": 32},
        "optim": {"lr": 1e-2},
    },
}
QUICK = [("full", "ddp"), ("lora", "zero3")]
SLOW = [("lora", "zero2")]
SOAK = [(kind, engine) for kind in LIVE for engine in ENGINES if (kind, engine) not in [*QUICK, *SLOW]]
PAIRS = [
    *QUICK,
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW),
    *(pytest.param(*pair, marks=pytest.mark.soak) for pair in SOAK),
]
SOME_ENGINES = [pytest.param(name, marks=() if name == "zero2" else pytest.mark.slow) for name in ENGINES]
"""Under these the worker runs: the live runs are quick under the two others."""
Updated = Callable[[str], Path]
Trained = Callable[[str, str], Path]

pytestmark = pytest.mark.timeout(400)  # DeepSpeed may have to build an extension first


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Updated:
    """What the worker wrote under an engine, or in one process (`single`); run once each."""
    folder = tmp_path_factory.mktemp("updated")

    @cache
    def folder_of(engine: str) -> Path:
        launch(WORKER, [str(folder / engine)], config=ENGINES.get(engine), output=folder / f"process_{engine}")
        return folder / engine

    return folder_of


def read_of(folder: Path, kind: str, num_ranks: int) -> dict[str, Tensor]:
    """What all ranks read between the steps, by the rank whose it is in a run of two."""
    return {
        name: value
        for rank in range(num_ranks)
        for name, value in load_file(folder / f"{kind}_read_{rank}.safetensors").items()
    }


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference between tensors of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("engine", SOME_ENGINES)
def test_the_engine_is_the_one_that_was_asked_for(updated: Updated, engine: str) -> None:
    for kind, seen in json.loads((updated(engine) / "seen.json").read_text()).items():
        assert (seen["engine"], seen["world_size"]) == (engine, 2)
        assert seen["class"] == ("DistributedDataParallel" if engine == "ddp" else "DeepSpeedEngine"), kind
        if engine == "zero2":
            assert seen["num_trained_here"] <= 0.51 * seen["num_trained"]
        if engine == "zero3":
            assert seen["num_whole_here"] == 0  # outside of `gathered`
            assert seen["num_parameters_here"] <= 0.51 * seen["num_parameters"]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("engine", SOME_ENGINES)
def test_updates_on_recorded_experience_are_those_of_one_process(updated: Updated, engine: str, kind: str) -> None:
    one, two = (load_file(updated(which) / f"{kind}.safetensors") for which in ("single", engine))
    assert gap(one, two) < TOLERANCE


def test_a_mean_of_means_would_be_noticed(updated: Updated) -> None:
    one, wrong = (load_file(updated("single") / f"{name}.safetensors") for name in ("full_head", "mean_of_means"))
    assert gap(one, wrong) > 1000 * TOLERANCE


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("engine", SOME_ENGINES)
def test_ranks_that_draw_and_read_unequally_much_do_what_one_process_does(
    updated: Updated, engine: str, kind: str
) -> None:
    one, two = read_of(updated("single"), kind, 1), read_of(updated(engine), kind, 2)
    assert {one[f"0/{rank}/responses"].shape[1] for rank in (0, 1)} == set(NEW_TOKENS)
    assert gap(one, two) < 2e-6


@pytest.mark.parametrize("engine", ["single", *SOME_ENGINES])
def test_with_an_adapter_the_reference_stands_on_the_base_that_is_trained(updated: Updated, engine: str) -> None:
    seen = json.loads((updated(engine) / "seen.json").read_text())
    assert {kind: at["reference_shares"] for kind, at in seen.items()} == {kind: "lora" in kind for kind in KINDS}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_task(tmp_path_factory.mktemp("task"))
    texts = [" ".join(LETTERS[place:] + LETTERS[:place]) for place in range(5)]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def trained(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run's folder of what is trained (full, lora) under an engine, or in one process (single); run once each."""
    folder = tmp_path_factory.mktemp("trained")

    @cache
    def folder_of(kind: str, engine: str) -> Path:
        rollout = {"num_prompts": 3, "samples_per_prompt": 2, "max_new_tokens": 12}
        config = write_config(
            folder / f"{kind}_{engine}",
            task,
            train={"steps": STEPS, "microbatch_tokens": 32},
            eval={"every": 3, "before_after": 7, "general_text": str(task / "texts.jsonl")},
            log={"every": 1},
            **LIVE[kind] | {"rollout": rollout | LIVE[kind].get("rollout", {})},
        )
        if engine == "single":
            ended = run_here(config, recipe=RLHF)
            assert (ended.code, ended.err) == (0, "")
        else:
            launch_policy(config, engine)
        return config.parent / "run"

    return folder_of


def launch_policy(config: Path, engine: str) -> Ended:
    """The recipe in two processes; under ZeRO-3 also parameters as small as these are sharded between steps."""
    if engine != "zero3":
        return launch(RLHF, [str(config)], config=ENGINES[engine], output=config.parent / "process")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    deepspeed, launcher = config.with_name("deepspeed.json"), config.with_name("launcher.yaml")
    deepspeed.write_text(json.dumps({"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}))
    recipe = yaml.safe_load((ROOT / "recipes" / "accelerate" / "cpu_zero3.yaml").read_text())
    recipe["deepspeed_config"] = {"deepspeed_config_file": str(deepspeed), "zero3_init_flag": False}
    launcher.write_text(yaml.safe_dump(recipe))
    options = ["--config_file", str(launcher), "--num_processes", "2", "--main_process_port", "0"]
    return launch_with(options, RLHF, [str(config)], output=config.parent / "process")


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("kind", "engine"), PAIRS)
def test_two_ranks_answer_the_held_out_prompts_as_one(trained: Trained, kind: str, engine: str) -> None:
    one, two = ([row for row in samples(trained(kind, each)) if "step" in row] for each in ("single", engine))
    assert one
    assert one[0].keys() >= {"index", "prompt", "response", "stopped", "score"}
    assert two == one


@pytest.mark.parametrize(("kind", "engine"), PAIRS)
def test_two_ranks_draw_the_samples_of_one(trained: Trained, kind: str, engine: str) -> None:
    one, two = ([row for row in samples(trained(kind, each)) if "rollout" in row] for each in ("single", engine))
    for name in ("rollout", "sample", "prompt", "response", "score", "stopped"):
        assert [row[name] for row in one] == [row[name] for row in two]
    first = [row for row in two if row["rollout"] == 0]
    longest = [max(len(row["response"].split()) for row in first if row["sample"] // 2 % 2 == rank) for rank in (0, 1)]
    assert longest[0] != longest[1]


@pytest.mark.parametrize(("kind", "engine"), PAIRS)
def test_on_the_first_minibatch_every_ratio_is_one(trained: Trained, kind: str, engine: str) -> None:
    first = next(row for row in metrics(trained(kind, engine)) if "loss" in row)
    assert first["clip_fraction"] == 0.0
    assert first["approx_kl"] == 0.0 if kind == "full" else abs(first["approx_kl"]) < 1e-9  # as tokens were drawn


@pytest.mark.parametrize(("kind", "engine"), PAIRS)
def test_what_two_ranks_train_is_that_of_one(trained: Trained, kind: str, engine: str) -> None:
    weights = [
        Checkpoint(trained(kind, which) / "checkpoints" / f"step-{STEPS:08d}").read_all("model")
        for which in ("single", engine)
    ]
    assert gap(*weights) < 2e-5
    scores = [
        [row["eval_score"] for row in metrics(trained(kind, at)) if "eval_score" in row] for at in ("single", engine)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9) and len(scores[0]) == 3


@pytest.mark.parametrize(("kind", "engine"), PAIRS)
def test_two_ranks_measure_before_and_after_what_one_does(trained: Trained, kind: str, engine: str) -> None:
    one, two = trained(kind, "single"), trained(kind, engine)
    assert_same_pair(one, two, {"held_out_answers", "general_text"}, tolerance=1e-4)


@pytest.mark.parametrize(("kind", "engine"), PAIRS)
def test_what_two_ranks_export_loads(trained: Trained, kind: str, engine: str) -> None:
    from peft import AutoPeftModelForCausalLM

    loader = AutoPeftModelForCausalLM if kind == "lora" else AutoModelForCausalLM
    model = loader.from_pretrained(trained(kind, engine) / "model")
    assert torch.isfinite(model(torch.tensor([[4, 5]])).logits).all()


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.soak) for name in ENGINES])
def test_two_ranks_learn(task: Path, tmp_path: Path, engine: str) -> None:
    policy = {"kl_coef": 0.0, "gae_lambda": 1.0}
    config = write_config(tmp_path, task, policy=policy, rollout={"num_prompts": 32}, train={"steps": 60})
    launch_policy(config, engine)
    first, *_, last = [row["eval_score"] for row in metrics(tmp_path / "run") if "eval_score" in row]
    assert last > first + 0.3
