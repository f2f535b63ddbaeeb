"""A head of a folder that transformers drops without a word is named."""

from __future__ import annotations

from pathlib import Path

import torch
from one_by_one import SMALL
from safetensors.torch import load_file, save_file
from tiny_run import write_tokenizer
from transformers import (
    AutoTokenizer,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    PreTrainedModel,
)

from llmtrain.config.sections import PretrainedModelConfig
from llmtrain.models.load import load_pretrained

LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8}


FIELDS = SMALL | EXPERTS | {"num_key_value_heads": 4, "first_k_dense_replace": 1, "vocab_size": 272}


def deepseek() -> PreTrainedModel:
    return DeepseekV3ForCausalLM(DeepseekV3Config(**FIELDS, **LATENT))


def reported(folder: Path, model: PreTrainedModel, **more: torch.Tensor) -> list[str]:
    """What loading a model says whose file holds more tensors."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors") | {name.replace("__", "."): each for name, each in more.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder))
    lines: list[str] = []
    load_pretrained(PretrainedModelConfig(path=str(folder)), tokenizer, max_seq_len=16, report=lines.append)
    return lines


def test_a_head_that_predicts_several_tokens_is_left_out_and_named(tmp_path: Path) -> None:
    head = {"model__layers__61__eh_proj__weight": torch.zeros(4, 8), "model__layers__61__enorm__weight": torch.zeros(4)}
    (line,) = reported(tmp_path, deepseek(), **head)
    assert "no place for 1 of its matrices, such as model.layers.61.eh_proj.weight (32 weights)" in line
    assert line.startswith(f"model.path={tmp_path}: ") and "\n" not in line


def test_nothing_is_said_of_a_folder_without_one(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1")  # not loaded
    assert reported(tmp_path, deepseek(), model__layers__61__rotary__inv_freq=torch.zeros(4)) == []


def test_a_layer_of_the_model_whose_experts_have_other_names_in_its_file_is_not_left_behind(tmp_path: Path) -> None:
    fields = FIELDS | {"num_hidden_layers": 47, "head_dim": 8}
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**fields))
    assert reported(tmp_path, model) == []
    assert "model.layers.46.mlp.experts.0.up_proj.weight" in load_file(tmp_path / "model.safetensors")
