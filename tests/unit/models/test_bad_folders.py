"""Folders that cannot be trained: one line that names what is wrong, before anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_chat import write_model
from tiny_run import write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.load import load_pretrained


def lose_a_shard(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def bring_code(folder: Path) -> None:
    path = folder / "config.json"
    code = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "strange", "auto_map": code}))
    (folder / "strange.py").write_text("raise AssertionError('it ran')")


def become_an_encoder_decoder(folder: Path) -> None:
    write_tokenizer(folder)
    T5ForConditionalGeneration(
        T5Config(vocab_size=272, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(folder)


def have_a_size_below_zero(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": -2}))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a size below zero": (have_a_size_below_zero, r"its configuration makes no model: .*negative dimension -2"),
    "a missing shard": (lose_a_shard, r"No such file or directory: .*model-00002-of-\d+.safetensors$"),
    "a missing weight": (
        lose_a_weight,
        r"its files lack the weights model.layers.1.mlp.up_proj.weight: copy or",
    ),
    "code of its own": (bring_code, r"it brings code of its own: read it, then set model.trust_remote_code=true$"),
    "an encoder-decoder": (become_an_encoder_decoder, r"no causal language model for its config.json: an encoder-dec"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SPOILT)
def test_a_folder_that_cannot_be_trained_is_refused_on_one_line(case: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    spoil, message = SPOILT[case]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(TunedModelConfig(path=str(tmp_path)), tokenizer, max_seq_len=32)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"model.path={tmp_path}: ")
