"""recipes/sft.py from its command line to the model folder, full fine-tuning and with an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_chat import write_config, write_model, write_rows
from tiny_run import SFT, Ended, metrics, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llmtrain.models.folders.open import open_model

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model, a base model and rows."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "chat")
    write_model(folder / "base", chat=False)
    write_rows(folder / "rows.jsonl", seed=1)
    return folder


def ran(config: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides, recipe=SFT)
    assert (ended.code, ended.err) == (0, "")
    return ended


def test_all_weights_are_tuned_and_the_held_out_loss_falls(inputs: Path, tmp_path: Path) -> None:
    ended = ran(write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"]))
    assert f"finished: {tmp_path}/run/model" in ended.out
    assert "messages rows" in ended.out
    losses = [row["eval_loss"] for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert losses[0] > losses[1] > losses[2]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert not torch.equal(model.lm_head.weight, AutoModelForCausalLM.from_pretrained(inputs / "chat").lm_head.weight)


@pytest.mark.parametrize("sections", [{}, LORA], ids=["full", "lora"])
def test_the_model_stops_where_a_trained_turn_ends(inputs: Path, tmp_path: Path, sections: dict) -> None:
    ran(write_config(tmp_path, inputs / "base", [inputs / "rows.jsonl"], **sections))
    folder = tmp_path / "run" / "model"
    end_of_turn = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn != AutoTokenizer.from_pretrained(inputs / "base").eos_token_id
    assert end_of_turn in GenerationConfig.from_pretrained(folder).eos_token_id
    model, _ = open_model(str(folder))
    assert end_of_turn in model.generation_config.eos_token_id


def test_a_finished_run_that_merges_can_be_started_again(inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], adapter=LORA["adapter"] | {"merge": True})
    ran(config, "train.steps=2")
    assert "merged: " in ran(config, "train.steps=4").out


def test_the_card_of_an_adapter_says_so(inputs: Path, tmp_path: Path) -> None:
    ran(write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], **LORA), "train.steps=2")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "library_name: peft" in card and "An adapter of `chat`" in card and str(inputs) not in card
    rest = json.loads((tmp_path / "run" / "model" / "training.json").read_text(encoding="utf-8"))
    assert rest["config"]["model"]["path"] == str(inputs / "chat") and {"ledger", "versions", "values"} <= rest.keys()


def test_an_adapter_of_another_base_does_not_chat(inputs: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    ran(write_config(tmp_path, base, [inputs / "rows.jsonl"], **LORA), "train.steps=2")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.weight.data += 1
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="was trained on another base"):
        open_model(str(tmp_path / "run"))


def test_an_adapter_is_tuned_and_loads_on_its_base(inputs: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    ended = ran(write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], **LORA))
    assert "optimizer state" in ended.out
    losses = [row["eval_loss"] for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert losses[-1] < losses[0]
    folder = tmp_path / "run" / "model"
    assert not list(folder.glob("model*.safetensors"))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(inputs / "chat")
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    moved = [p.abs().max() for name, p in model.named_parameters() if "lora_B" in name]
    assert moved and all(float(value) > 0 for value in moved)


def test_a_merged_model_is_written_on_request_and_answers_as_the_adapter_does(inputs: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    adapter = LORA["adapter"] | {"merge": True}
    ran(write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], adapter=adapter))
    ids = torch.arange(20)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    both = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, both(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sections", [{}, LORA], ids=["full", "lora"])
def test_a_base_model_gets_our_template_and_its_tokens(inputs: Path, tmp_path: Path, sections: dict) -> None:
    ran(write_config(tmp_path, inputs / "base", [inputs / "rows.jsonl"], **sections))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert text == "<|bos|><|im_start|>user\nab<|im_end|>\n"
    assert len(tokenizer.encode("<|im_start|><|im_end|>", add_special_tokens=False)) == 2


def test_a_checkpoint_of_an_adapter_leaves_the_frozen_base_out(inputs: Path, tmp_path: Path) -> None:
    from llmtrain.train.checkpoint import Checkpoint

    ran(write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], **LORA))
    names = Checkpoint(tmp_path / "run" / "checkpoints" / "step-00000010").names("model")
    assert names and all("lora_" in name for name in names)


def test_the_ledger_accounts_for_every_row_and_token(inputs: Path, tmp_path: Path) -> None:
    ran(write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], data={"max_seq_len": 64}))
    (source,) = json.loads((tmp_path / "run" / "ledger.json").read_text())["train"]
    dropped = sum(tally["documents"] for tally in source["dropped"].values())
    assert source["read"]["documents"] == 120 == sum(kept["documents"] for kept in source["kept"].values()) + dropped
    train = source["tokens"]["train"]
    assert train["tokens"] == train["trained_tokens"] + train["masked_tokens"]
    assert train["rows_cut"] > 0 and train["truncated_tokens"] > 0


def test_a_run_on_another_base_is_refused(inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], **LORA)
    ran(config, "train.steps=4")
    other = tmp_path / "other"
    write_model(other)
    weights = AutoModelForCausalLM.from_pretrained(other)
    weights.model.norm.weight.data += 1
    weights.save_pretrained(other)
    (inputs / "chat").rename(inputs / "chat.kept")
    other.rename(inputs / "chat")
    try:
        ended = run_here(config, recipe=SFT)
    finally:
        (inputs / "chat").rename(tmp_path / "replaced")
        (inputs / "chat.kept").rename(inputs / "chat")
    assert ended.code == 2 and "base.weights was" in ended.err
