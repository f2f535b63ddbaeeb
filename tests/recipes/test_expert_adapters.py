"""Adapters on the experts of a mixture: what a run trains, saves, merges and goes on with is what plain peft has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import yaml
from families.steps import (
    RECIPES,
    compared,
    configuration,
    documents,
    export_first_step,
    loaded,
    pairs_loss,
    plain_loss,
    write_base,
    write_rows,
)
from peft import AutoPeftModelForSequenceClassification, PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from llmtrain.models.folders.adapter import merge_adapter

IDS = torch.arange(40, 70)[None]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
GO_ON = {"continue": True}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family -> a folder with its base, its rows, and a finished run of two steps, made once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            (made[family] / "base").mkdir()
            write_base(made[family] / "base", family)
            write_rows(made[family])
            assert run(made[family], "lora", target=["q_proj"]).code == 0
        return made[family]

    return get


def run(
    folder: Path,
    step: str,
    name: str = "",
    base: Path | None = None,
    train: dict[str, Any] | None = None,
    **adapter: Any,
) -> Any:
    """A run of a step in a folder of its name, with an adapter on the experts."""
    tree = configuration(step, base or folder / "base", folder)
    place = folder / (name or step)
    place.mkdir()
    tree["run"]["dir"] = str(place / "run")
    tree["train"] |= train or {}
    tree["adapter"] = {"kind": "lora", "rank": 4, "alpha": 8, "target_parameters": EXPERTS} | adapter
    (place / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tiny_run.run_here(place / "config.yaml", recipe=RECIPES[step])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "olmoe"])
def test_loss_and_gradient_are_those_of_peft_one_document_at_a_time(families: Any, family: str) -> None:
    folder = families(family)
    export_first_step(folder / "lora" / "run", folder / "lora" / "first")
    outcome = compared("lora", folder / "lora", folder / "base", documents())
    assert outcome.verdict == "exact", outcome
    adapted = PeftModel.from_pretrained(loaded(folder / "base"), folder / "lora" / "first")
    wrapped = [name for name, each in adapted.named_modules() if type(each).__name__ == "ParamWrapper"]
    assert len(wrapped) == 4 and all("experts" in name for name in wrapped)
    before = logits(loaded(folder / "base"))
    assert (logits(adapted) - before).abs().max() > 1e-3 * before.abs().max()


def test_merged_it_answers_as_it_does_in_peft(families: Any, tmp_path: Path) -> None:
    folder = families("gpt_oss")
    trained = folder / "lora" / "run" / "model"
    merge_adapter(trained, tmp_path / "merged")
    adapted = PeftModel.from_pretrained(loaded(folder / "base"), trained)
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), logits(adapted), rtol=1e-4, atol=1e-4)


def test_it_goes_on_where_it_was(families: Any) -> None:
    folder = families("mixtral")
    trained = folder / "lora" / "run" / "model"
    ended = run(
        folder, "lora", "on", base=trained, rank=16, alpha=32, target="all-linear", target_parameters=[], **GO_ON
    )
    assert ended.code == 0, ended.err
    rows, plain = documents(), PeftModel.from_pretrained(loaded(folder / "base"), trained, is_trainable=True)
    loss, norm = plain_loss(plain, [row["input_ids"] for row in rows], [row["labels"] for row in rows])
    first = next(row for row in tiny_run.metrics(folder / "on" / "run") if row["step"] == 1)
    assert first["loss"] == pytest.approx(loss, rel=2e-5) and first["grad_norm"] == pytest.approx(norm, rel=2e-3)
    settings = json.loads((folder / "on" / "run" / "model" / "adapter_config.json").read_text())
    assert set(settings["target_parameters"]) == set(EXPERTS) and settings["target_modules"] == ["q_proj"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"target_parameters": ["experts.w1"]},
            "adapter.target_parameters=experts.w1: this model has no parameter of that",
        ),
        ({"compile": True}, "train.compile: peft's adapters on experts (adapter.target_parameters) do not compile"),
        (
            {"compile": True, "base": "lora/run/model", "target": "all-linear", "target_parameters": [], **GO_ON},
            "train.c",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(families: Any, keys: dict[str, Any], said: str) -> None:
    folder = families("mixtral")
    keys = {"rank": 16, "alpha": 32} | keys
    base, compiled = folder / keys.pop("base", "base"), keys.pop("compile", False)
    ended = run(folder, "lora", f"refused_{len(said)}", base=base, train={"compile": compiled}, **keys)
    assert ended.code == 2 and len(ended.err.strip().splitlines()) == 1 and f"error: {said}" in ended.err


def test_a_reward_model_has_it_too(families: Any) -> None:
    folder = families("olmoe")
    assert run(folder, "reward", target=[]).code == 0
    export_first_step(folder / "reward" / "run", folder / "reward" / "first")
    first = folder / "reward" / "first"
    tokenizer = AutoTokenizer.from_pretrained(first)
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        first, num_labels=1, pad_token_id=tokenizer.pad_token_id, is_trainable=True
    )
    loss, norm = pairs_loss(model, tokenizer, folder / "pairs.jsonl")
    second = tiny_run.metrics(folder / "reward" / "run")[-1]
    assert second["loss"] == pytest.approx(loss, rel=2e-5) and second["grad_norm"] == pytest.approx(norm, rel=2e-3)


def test_a_policy_has_it_and_its_reference_has_not(families: Any) -> None:
    folder = families("qwen3_moe")
    ended = run(folder, "ppo", target=[])
    assert ended.code == 0, ended.err
    first, second = (row for row in tiny_run.metrics(folder / "ppo" / "run") if row["step"] >= 1)
    assert first["rollout_logprob_difference_max"] < 1e-5  # it generates with it
    assert first["kl"] == 0 < second["kl"]  # the reference stays the base
