"""The offline stage of recipes/rlhf.py from its command line to the model's folder: DPO and its variants."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import write_config, write_model
from tiny_pairs import pairs, write_pairs
from tiny_run import RLHF, Ended, metrics, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtrain.models.folders.open import open_model
from llmtrain.system.run_files import evaluation_path

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "cdpo": {"label_smoothing": 0.1},
    "ipo": {},
    "orpo": {"beta": 1.0},
    "simpo": {"gamma": 0.5},
}
WITH_REFERENCE = ("dpo", "cdpo", "ipo")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model, a base model and pairs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "chat", spread=0.1)
    write_model(folder / "base", chat=False, spread=0.1)
    write_pairs(folder / "pairs.jsonl", seed=1)
    return folder


def config_of(folder: Path, model: Path, source: Path, **sections: Any) -> Path:
    data = {"eval_fraction": 0.2} | sections.pop("data", {})
    return write_config(folder, model, [source], data=data, **{"preference": {}} | sections)


def ran(config: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides, recipe=RLHF)
    assert ended.code == 0, ended.err
    return ended


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(folder / "run") if "eval_loss" in row]


def preferred(model: Any, tokenizer: Any) -> float:
    """The share of pairs that a loaded model never saw whose chosen answer is the likelier, token for token."""
    num_right = 0
    rows = list(pairs(seed=9, num_pairs=20))
    for row in rows:
        means = []
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]}]
            before = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            messages.append({"role": "assistant", "content": row[side]})
            ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
            with torch.no_grad():
                logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            means.append(logprobs.gather(-1, ids[0, 1:, None])[len(before) - 1 :].mean())
        num_right += int(means[0] > means[1])
    return num_right / len(rows)


@pytest.mark.parametrize(
    "loss", [pytest.param(loss, marks=() if loss in ("dpo", "simpo") else pytest.mark.slow) for loss in LOSSES]
)
def test_every_loss_learns_to_rank_held_out_pairs(inputs: Path, tmp_path: Path, loss: str) -> None:
    preference = {"loss": loss} | LOSSES[loss]
    ended = ran(config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl", preference=preference, **LORA))
    assert ("reference logprobs" in ended.out) == (loss in WITH_REFERENCE)
    first, *_, last = evaluations(tmp_path)
    assert last["eval_loss"] < first["eval_loss"]
    assert last["eval_accuracy"] > 0.9 and last["eval_accuracy_low"] > 0.5
    assert {"eval_chosen_reward", "eval_rejected_reward", "eval_chosen_logprob"} <= last.keys()
    report = json.loads(evaluation_path(tmp_path / "run", last["step"]).read_text(encoding="utf-8"))
    assert report["accuracy"] == last["eval_accuracy"] and "pearson" in report["length"]


def test_a_run_starts_where_the_reference_stands(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl", **LORA), "train.steps=1")
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert evaluations(tmp_path)[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert {"accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob"} <= rows[0].keys()


def test_before_training_held_out_answers_are_ties_though_the_reference_was_asked_in_other_batches(
    inputs: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl", **LORA)
    ran(config, "train.steps=1", f"data.cache_dir={tmp_path}/cache", "train.microbatch_tokens=512")
    shutil.rmtree(tmp_path / "run")
    ran(config, "train.steps=1", f"data.cache_dir={tmp_path}/cache", "train.microbatch_tokens=128")
    first, last = evaluations(tmp_path)
    assert (first["eval_accuracy"], first["eval_auc"], first["eval_chosen_reward"]) == (0.5, 0.5, 0.0)
    assert last["eval_accuracy"] != 0.5 and last["eval_chosen_reward"] != 0.0


@pytest.mark.parametrize("sections", [{}, LORA], ids=["full", "lora"])
def test_others_load_a_model_that_prefers_as_it_was_trained_to(inputs: Path, tmp_path: Path, sections: dict) -> None:
    ran(config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl", **sections))
    before = AutoModelForCausalLM.from_pretrained(inputs / "chat")
    model, tokenizer = open_model(str(tmp_path / "run"))
    assert preferred(before, tokenizer) < 0.8
    assert preferred(model, tokenizer) > 0.9


def test_a_merged_model_is_written_on_request(inputs: Path, tmp_path: Path) -> None:
    adapter = LORA["adapter"] | {"merge": True}
    ended = ran(config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl", adapter=adapter))
    folder = tmp_path / "run" / "merged"
    assert f"merged: {folder}" in ended.out
    assert preferred(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)) > 0.9


def test_a_base_model_gets_our_template_and_its_tokens(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "base", inputs / "pairs.jsonl", **LORA))
    model, tokenizer = open_model(str(tmp_path / "run"))
    assert preferred(model, tokenizer) > 0.9


def test_a_run_that_was_stopped_goes_on_to_the_same_model(inputs: Path, tmp_path: Path) -> None:
    models = []
    for name, stops in {"whole": [10], "stopped": [6, 10]}.items():
        optim = {"schedule": "constant", "warmup_steps": 1}
        config = config_of(tmp_path / name, inputs / "chat", inputs / "pairs.jsonl", optim=optim, **LORA)
        for steps in stops:
            ran(config, f"train.steps={steps}")
        models.append((tmp_path / name / "run" / "model" / "adapter_model.safetensors").read_bytes())
    assert models[0] == models[1]


@pytest.mark.slow
def test_the_reference_is_asked_once_for_all_runs_on_a_model_and_its_pairs(inputs: Path, tmp_path: Path) -> None:
    cache = {"cache_dir": str(tmp_path / "cache"), "eval_fraction": 0.2}
    losses, told = [], []
    for name, sections in {"first": LORA, "again": LORA, "full": {}}.items():
        config = config_of(tmp_path / name, inputs / "chat", inputs / "pairs.jsonl", data=cache, **sections)
        told.append(ran(config, "train.steps=3").out)
        losses.append([row["loss"] for row in metrics(tmp_path / name / "run") if "loss" in row])
    assert [out.count("computed in") for out in told] == [2, 0, 0]
    assert losses[0] == losses[1]
    other = config_of(tmp_path / "other", inputs / "base", inputs / "pairs.jsonl", data=cache, **LORA)
    assert "computed in" in ran(other, "train.steps=1").out


@pytest.mark.parametrize(
    "field", [{"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}, {"rms_norm_eps": 0.1}]
)
def test_the_reference_of_another_configuration_is_not_found(
    inputs: Path, tmp_path: Path, field: dict[str, Any]
) -> None:
    base = shutil.copytree(inputs / "chat", tmp_path / "chat")
    ran(config_of(tmp_path, base, inputs / "pairs.jsonl", run={"dir": str(tmp_path / "first")}), "train.steps=1")
    stored = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(stored | field))
    ended = ran(config_of(tmp_path, base, inputs / "pairs.jsonl"), "train.steps=1")
    assert ended.out.count("computed in") == 2
    first = next(row for row in metrics(tmp_path / "run") if "lr" in row)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_torn_file_of_the_reference_is_made_anew(inputs: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl")
    ran(config, "train.steps=1")
    (file,) = (tmp_path / "cache").glob("*/train.reference-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    ran(config, "train.steps=2")
    assert file.read_bytes() == whole


def test_a_run_does_not_go_on_from_another_base(inputs: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl")
    ran(config, "train.steps=1")
    environment = tmp_path / "run" / "environment.json"
    started = json.loads(environment.read_text())
    started["pinned"]["base"]["weights"] = "0"
    environment.write_text(json.dumps(started))
    ended = run_here(config, "train.steps=2", recipe=RLHF)
    assert ended.code == 2 and "the base model changed since this run started (base.weights was '0'" in ended.err


def test_the_ledger_counts_the_tokens_of_answers(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl"), "train.steps=null", "train.epochs=1")
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    (source,) = ledger["train"]
    assert ledger["training"]["tokens_per_epoch"] == source["tokens"]["train"]["trained_tokens"]


def write_judged(path: Path, *, label: str = "label") -> Path:
    """The answers of pairs one by one, each with its judgement; the file."""
    rows = [
        {"prompt": row["prompt"], "completion": row[side], label: side == "chosen"}
        for row in pairs(seed=1)
        for side in ("chosen", "rejected")
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "kind", [pytest.param("pairs", marks=pytest.mark.slow), "label", pytest.param("kto_tag", marks=pytest.mark.slow)]
)
def test_kto_learns_which_answers_are_desirable(inputs: Path, tmp_path: Path, kind: str) -> None:
    source = inputs / "pairs.jsonl" if kind == "pairs" else write_judged(tmp_path / "judged.jsonl", label=kind)
    config = config_of(tmp_path, inputs / "chat", source, preference={"loss": "kto"}, **LORA)
    ended = ran(config)
    assert re.search(r"\d+ desirable and \d+ undesirable answers\n", ended.out)
    first, *_, last = evaluations(tmp_path)
    assert first["eval_loss"] == pytest.approx(0.5, abs=1e-6) and last["eval_loss"] < 0.45
    assert first["eval_accuracy"] == first["eval_auc"] == 0.5  # nothing but rounding differs from the reference
    assert last["eval_accuracy"] > 0.75 and last["eval_accuracy_low"] > 0.5
    assert last["eval_desirable_reward"] > last["eval_undesirable_reward"]
    assert {"loss", "accuracy", "signed_reward", "kl"} <= metrics(tmp_path / "run")[-2].keys()
    report = json.loads(evaluation_path(tmp_path / "run", last["step"]).read_text(encoding="utf-8"))
    right = report["confusion"]["true_positives"] + report["confusion"]["true_negatives"]
    assert right / report["answers"] == pytest.approx(last["eval_accuracy"])
    assert report["auc"] == last["eval_auc"] > 0.75
    model, tokenizer = open_model(str(tmp_path / "run"))
    assert preferred(model, tokenizer) > 0.9


@pytest.mark.slow
def test_kto_that_was_stopped_goes_on_to_the_same_model(inputs: Path, tmp_path: Path) -> None:
    models = []
    source = write_judged(tmp_path / "judged.jsonl")
    for name, stops in {"whole": [8], "stopped": [5, 8]}.items():
        optim = {"schedule": "constant", "warmup_steps": 1}
        adapter = LORA["adapter"] | {"dropout": 0.1}
        preference = {"loss": "kto", "undesirable_weight": 0.8}
        sections: dict[str, Any] = {"optim": optim, "adapter": adapter, "preference": preference}
        config = config_of(tmp_path / name, inputs / "chat", source, **sections)
        for steps in stops:
            ran(config, f"train.steps={steps}")
        models.append((tmp_path / name / "run" / "model" / "adapter_model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_answers_of_which_few_are_desirable_are_told_of(inputs: Path, tmp_path: Path) -> None:
    source = write_judged(tmp_path / "judged.jsonl")
    rows = source.read_text().splitlines()
    source.write_text("\n".join([*rows[:20], *rows[21::2]]) + "\n")
    ended = ran(config_of(tmp_path, inputs / "chat", source, preference={"loss": "kto"}), "train.steps=1")
    assert "undesirable answers: warning: weighted, 0." in ended.out and "preference.desirable_weight" in ended.out


def test_rows_with_a_label_are_refused_by_a_loss_over_pairs(inputs: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs / "chat", write_judged(tmp_path / "judged.jsonl"))
    ended = run_here(config, recipe=RLHF)
    assert ended.code == 2 and "set preference.loss=kto" in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preference.gamma=1"], "preference.gamma does nothing without preference.loss=simpo"),
        (["preference.label_smoothing=0.1"], "preference.label_smoothing does nothing without preference.loss=cdpo"),
        (["preference.desirable_weight=2"], "preference.desirable_weight does nothing without preference.loss=kto"),
        (["preference.loss=cdpo"], "preference.loss=cdpo: give preference.label_smoothing"),
        (["preference.loss=cdpo", "preference.label_smoothing=0.6"], "preference.label_smoothing=0.6: .*less than 0.5"),
        (["preference.loss=ppo"], r"preference.loss='ppo': .*'dpo'"),
        (["preference.beta=0"], "preference.beta=0: .*greater than 0"),
        (["preference.betta=1"], "unknown key preference.betta: the nearest is preference.beta"),
        (["train.z_loss=0.1"], "train.z_loss does nothing without a loss over tokens"),
        (["reward.centering=0.1"], "reward and preference are sections of different stages"),
    ],
)
def test_a_line_that_would_do_nothing_is_refused(
    inputs: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    config = config_of(tmp_path, inputs / "chat", inputs / "pairs.jsonl")
    ended = run_here(config, *overrides, recipe=RLHF)
    assert ended.code == 2 and re.search(message, ended.err) and ended.err.count("\n") == 1, ended.err
