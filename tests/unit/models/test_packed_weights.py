"""Folders of weights in few bits: MXFP4 is read as the numbers it encodes, other forms are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_chat import write_model
from tiny_run import write_tokenizer
from torch import Tensor
from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM

from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.load import load_pretrained

VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # of E2M1's 16 codes
EXPERTS = "model.layers.0.mlp.experts"


def add_to_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def write_mxfp4(folder: Path) -> dict[str, Tensor]:
    """A tiny gpt-oss whose experts are saved in MXFP4, with a tokenizer; the numbers of these experts."""
    write_tokenizer(folder)
    shape = GptOssConfig(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["full_attention"],
    )
    shape.bos_token_id, shape.eos_token_id, shape.pad_token_id = 256, 257, 258
    GptOssForCausalLM(shape).bfloat16().save_pretrained(folder)
    weights, meant = load_file(folder / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for name in ("gate_up_proj", "down_proj"):
        experts, inputs, outputs = weights.pop(f"{EXPERTS}.{name}").shape
        size = (experts, outputs, inputs // 32)
        blocks = torch.randint(256, (*size, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 127, size, generator=generator, dtype=torch.uint8)
        weights[f"{EXPERTS}.{name}_blocks"], weights[f"{EXPERTS}.{name}_scales"] = blocks, scales
        pairs = torch.stack([VALUES[(blocks & 15).long()], VALUES[(blocks >> 4).long()]], -1).flatten(-2)
        meant[f"{EXPERTS}.{name}"] = (pairs * 2.0 ** (scales[..., None].float() - 127)).flatten(-2).transpose(1, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    add_to_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": kept})
    return meant


def test_mxfp4_is_read_as_the_numbers_that_it_encodes(tmp_path: Path) -> None:
    meant = write_mxfp4(tmp_path)
    model = load_pretrained(
        TunedModelConfig(path=str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path), max_seq_len=32
    )
    weights = dict(model.named_parameters())
    for name, expected in meant.items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], expected)
    assert "quantization_config" not in model.config.to_dict()  # or an export would say that it is packed


@pytest.mark.parametrize("form", ["fp8", "gptq", "awq", "compressed-tensors"])
def test_a_model_that_was_rounded_after_training_is_refused_by_the_name_of_its_form(form: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    add_to_config(tmp_path, quantization_config={"quant_method": form})
    with pytest.raises(ValueError, match=rf"weights are quantized \({form}\): take the model that they were made from"):
        load_pretrained(TunedModelConfig(path=str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path), max_seq_len=32)
