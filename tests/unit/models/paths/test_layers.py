"""Of models as deep as real ones, a small copy has few layers, and one of each kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.tiny import tiny_config
from one_by_one import SMALL
from tiny_paths import EXPERTS
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from llmtrain.models.attention import ATTENTION
from llmtrain.models.paths.choose import paths
from llmtrain.models.paths.layers import Layers, few_layers
from llmtrain.models.paths.small import small_copy
from llmtrain.models.trunk import run_model

WIDTHS = SMALL | {"pad_token_id": 0}
PERIOD = [*["sliding_attention"] * 4, "full_attention"]
MIXERS = {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 8}
SHARED = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96, "sliding_window": 512}


def deep(family: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = CONFIG_MAPPING[family](**WIDTHS | fields)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION)
    return model


def gemma3n() -> PreTrainedModel:
    """As E2B: the last ten of 30 layers take the keys of others."""
    fields: dict[str, Any] = {"num_hidden_layers": 30, "layer_types": PERIOD * 6, "num_kv_shared_layers": 10}
    fields |= {"intermediate_size": [64] * 30, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20}
    return deep("gemma3n_text", **fields, laurel_rank=8, altup_num_inputs=2, **SHARED)


def gemma4() -> PreTrainedModel:
    """As E2B: the last twenty of 35 layers do, and have wider feed-forwards; layers have sizes of their own."""
    fields: dict[str, Any] = {"num_hidden_layers": 35, "layer_types": PERIOD * 7, "num_kv_shared_layers": 20}
    return deep("gemma4_text", **fields, global_head_dim=16, use_double_wide_mlp=True, **SHARED)


def nemotron_h() -> PreTrainedModel:
    """As 8B: 52 layers, whose number is only the length of a list."""
    pattern = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    fields = {name: value for name, value in WIDTHS.items() if name != "num_hidden_layers"}
    return AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["nemotron_h"](**fields, **MIXERS, hybrid_override_pattern=pattern)
    )


@pytest.mark.parametrize(
    ("make", "numbers"),
    [(gemma3n, (0, 4, 18, 19, 20, 24)), (gemma4, (0, 4, 13, 14, 15, 19)), (nemotron_h, (0, 1, 2, 3, 4, 5, 6, 7))],
)
def test_a_copy_has_the_first_layer_of_each_kind(make: Any, numbers: tuple[int, ...]) -> None:
    model = make()
    found = few_layers(model)
    assert found is not None and found.numbers == numbers
    small = small_copy(model, 2048, "eager")
    assert small.config.num_hidden_layers == len(numbers)
    if small.config.model_type != "nemotron_h":
        shared = [layer.self_attn.is_kv_shared_layer for layer in small.base_model.layers]
        assert shared == [False] * 4 + [True] * 2


def test_the_first_layers_do_where_they_are_of_all_kinds() -> None:
    assert few_layers(deep("llama", num_hidden_layers=40)) == Layers((0, 1))
    types = ["linear_attention", "linear_attention", "full_attention"] * 8
    assert few_layers(deep("qwen3_next", num_hidden_layers=24, layer_types=types, **EXPERTS)) == Layers((0, 1, 2))


def test_a_layer_that_knows_its_place_is_no_kind_of_its_own() -> None:
    """Those of GPT-Neo have it as layer_id: twelve were copied, with all their widths."""
    fields = WIDTHS | {"num_hidden_layers": 24, "attention_types": [[["global", "local"], 12]]}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt_neo"](**fields))
    assert few_layers(model) == Layers((0, 1))
    small = small_copy(model, 2048, "eager")
    assert small.config.attention_layers == ["global", "local"]


def test_feed_forward_layers_with_a_size_each_are_narrow_in_a_copy() -> None:
    """Those of Gemma 3n, 16,384 wide, were most of what the check takes of a GPU's memory."""
    model = deep(
        "gemma3n_text",
        num_hidden_layers=2,
        layer_types=PERIOD[-2:],
        num_kv_shared_layers=0,
        intermediate_size=[256, 512],
        activation_sparsity_pattern=[0.95, 0.0],
        laurel_rank=8,
        altup_num_inputs=2,
        **SHARED,
    )
    assert set(small_copy(model, 64, "eager").config.intermediate_size) == {128}


def test_a_window_of_late_layers_that_packs_ignore_is_found() -> None:
    """Qwen2-MoE has its windows in the mask alone, here from the 21st of 24 layers on."""
    types = ["full_attention"] * 20 + ["sliding_attention"] * 4
    fields = EXPERTS | {"num_hidden_layers": 24, "use_sliding_window": True, "sliding_window": 1024}
    model = deep("qwen2_moe", **fields, layer_types=types, shared_expert_intermediate_size=16)
    found = few_layers(model)
    assert found is not None and found.numbers == (0, 20)
    assert next(paths(model, "segments", 2048, run_model)).kernel == "padded"


def test_a_vision_tower_of_as_many_layers_is_not_taken_for_the_text_model() -> None:
    shape = tiny_config("glm4v_moe", vocab_size=96)
    shape.text_config.num_hidden_layers = shape.vision_config.depth = 4
    shape.text_config.first_k_dense_replace = 2
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shape)
    assert few_layers(model) == Layers((0, 1, 2)), "the third is the first with experts"
