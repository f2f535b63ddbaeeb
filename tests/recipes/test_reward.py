"""The reward stage of recipes/rlhf.py from its command line to the model's folder and its card."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import write_config, write_model
from tiny_pairs import RLHF, pairs, write_pairs
from tiny_run import Ended, metrics, run_here
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmtrain.cli import merge
from llmtrain.models.folders.reward import beats_chance

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model, a base model and pairs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "chat")
    write_model(folder / "base", chat=False)
    write_pairs(folder / "pairs.jsonl", seed=1)
    return folder


def config_of(folder: Path, model: Path, sources: list[Path], **sections: Any) -> Path:
    data = {"eval_fraction": 0.2} | sections.pop("data", {})
    return write_config(folder, model, sources, data=data, **{"reward": {}} | sections)


def ran(config: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides, recipe=RLHF)
    assert (ended.code, ended.err) == (0, "")
    return ended


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "run" / "reward_card.json").read_text(encoding="utf-8"))
    return card


def scores(model: Any, tokenizer: Any, side: str) -> torch.Tensor:
    """What a loaded model says of one side of pairs that it never saw."""
    found = []
    for row in pairs(seed=9, num_pairs=20):
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
        with torch.no_grad():
            found.append(model.eval()(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize("sections", [{}, LORA], ids=["full", "lora"])
def test_a_reward_model_learns_to_rank_held_out_pairs(inputs: Path, tmp_path: Path, sections: dict) -> None:
    ended = ran(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"], **sections))
    assert "the reward model beats chance: accuracy" in ended.out
    found = [row for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert found[-1]["eval_loss"] < found[0]["eval_loss"]
    assert found[-1]["eval_accuracy"] > 0.9 and found[-1]["eval_accuracy_low"] > 0.5


@pytest.mark.parametrize("sections", [{}, LORA], ids=["full", "lora"])
def test_others_load_a_model_that_ranks_as_it_was_trained_to(inputs: Path, tmp_path: Path, sections: dict) -> None:
    from peft import AutoPeftModelForSequenceClassification

    ran(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"], **sections))
    folder = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loader = AutoPeftModelForSequenceClassification if sections else AutoModelForSequenceClassification
    told = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id} if sections else {}
    model = loader.from_pretrained(folder, **told)
    assert (scores(model, tokenizer, "chosen") > scores(model, tokenizer, "rejected")).float().mean() > 0.9


def test_the_card_is_what_metrics_say_of_the_exported_step(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"]))
    card, last = card_of(tmp_path), [row for row in metrics(tmp_path / "run") if "eval_loss" in row][-1]
    assert (card["step"], card["accuracy"], card["loss"]) == (10, last["eval_accuracy"], last["eval_loss"])
    assert beats_chance(card) and card["pairs"] == sum(card["margin_histogram"]["comparisons"])
    assert card["sources"][0]["path"] == str(inputs / "pairs.jsonl")
    assert {"pearson", "spearman", "accuracy_longer_rejected"} <= card["length"].keys()


def test_a_reward_model_that_learnt_nothing_is_told_of(inputs: Path, tmp_path: Path) -> None:
    rows = [
        row if i % 2 else row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        for i, row in enumerate(pairs(seed=1))
    ]
    path = tmp_path / "coin.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ended = ran(config_of(tmp_path, inputs / "chat", [path], train={"steps": 3}))
    assert re.search(r"warning: the reward model may be no better than chance: accuracy 0\.\d+ on \d+", ended.out)


def test_without_held_out_pairs_the_model_counts_as_not_evaluated(inputs: Path, tmp_path: Path) -> None:
    ended = ran(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"], data={"eval_fraction": 0.0}))
    assert "the reward model is not evaluated" in ended.out
    assert not (tmp_path / "run" / "reward_card.json").exists()


def test_a_base_model_gets_our_template_and_its_tokens(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "base", [inputs / "pairs.jsonl"], **LORA))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert len(tokenizer.encode("<|im_start|><|im_end|>", add_special_tokens=False)) == 2
    assert tokenizer.pad_token == "<|pad|>"


def test_a_merged_model_is_written_on_request(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"], adapter=LORA["adapter"] | {"merge": True}))
    folder = tmp_path / "run" / "merged"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (scores(model, tokenizer, "chosen") > scores(model, tokenizer, "rejected")).float().mean() > 0.9


def test_a_model_that_is_merged_later_keeps_its_card(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"], **LORA))
    merge.run(Namespace(adapter=str(tmp_path / "run"), output=tmp_path / "merged", base=None, dtype=None))
    assert json.loads((tmp_path / "merged" / "reward_card.json").read_text(encoding="utf-8")) == card_of(tmp_path)


def test_a_run_that_was_stopped_goes_on_to_the_same_model(inputs: Path, tmp_path: Path) -> None:
    models = []
    for name, stops in {"whole": [10], "stopped": [6, 10]}.items():
        optim = {"schedule": "constant", "warmup_steps": 1}
        config = config_of(tmp_path / name, inputs / "chat", [inputs / "pairs.jsonl"], optim=optim, **LORA)
        for steps in stops:
            ran(config, f"train.steps={steps}")
        models.append((tmp_path / name / "run" / "model" / "adapter_model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_a_run_says_that_prompts_stand_once_and_keeps_to_it(inputs: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"])
    assert "a pair's prompt is computed once" in ran(config, "train.steps=1").out
    environment = tmp_path / "run" / "environment.json"
    started = json.loads(environment.read_text())
    started["pinned"]["packing"]["shared_prompts"] = False
    environment.write_text(json.dumps(started))
    ended = run_here(config, "train.steps=2", recipe=RLHF)
    assert ended.code == 2 and "packing.shared_prompts was False and is True now" in ended.err


def test_the_ledger_accounts_for_every_pair(inputs: Path, tmp_path: Path) -> None:
    ran(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"], data={"max_seq_len": 64, "eval_fraction": 0.2}))
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    (source,) = ledger["train"]
    dropped = sum(tally["documents"] for tally in source["dropped"].values())
    assert source["read"]["documents"] == 160 == sum(kept["documents"] for kept in source["kept"].values()) + dropped
    assert dropped > 0
    assert ledger["training"]["tokens_trained"] > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.label_smoothing=0.1", "train.label_smoothing does nothing without a loss over tokens"),
        ("model.neftune_alpha=5", "model.neftune_alpha does nothing without a loss over tokens"),
        ("adapter.rank=8", "adapter.rank does nothing without adapter.kind"),
        ("reward.margin=true", r"reward.margin: .*pairs.jsonl has rows without a margin"),
        ("data.loss_on=last", "data.loss_on"),
        ("reward.center=0.1", "reward.center.*centering"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(inputs: Path, tmp_path: Path, override: str, message: str) -> None:
    ended = run_here(config_of(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"]), override, recipe=RLHF)
    assert ended.code == 2 and re.search(message, ended.err) and ended.err.count("\n") == 1
