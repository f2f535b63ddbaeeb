"""A tiny random model of any model type of `transformers`: every size of its configuration is shrunk by one rule.

    config = tiny_config("qwen3_moe", vocab_size=272)       # 2 to 4 layers, width 64, 4 experts, windows of 8 tokens

A size is known by the name of its field (`hidden_size`, `n_embd`, ...), in the configurations inside it too. The few
fields that the rule cannot know are in EXCEPTIONS, each with its reason.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER = 64, 4, 2, 16, 96
LAYERS, EXPERTS, CHOSEN, WINDOW, POSITIONS = 2, 4, 2, 8, 512
MAX_LAYERS = 6  # of a model whose kinds of layer take turns

# The first expression that the whole name of a field matches decides its value.
SIZES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size_per_layer_input", "vocab"),
    (r"vocab_size|n_vocab|text_vocab_size", "vocab"),
    (r"(text_)?(hidden_size|d_model|n_embd|embed_dim|dim|model_dim|n_embed|embedding_size|word_embed_proj_dim)", WIDTH),
    (
        r"(hidden_dim|projection_dim|out_hidden_size|output_hidden_size|proj_dim|vision_output_dim|lm_hidden_size|"
        r"projector_input_dim|projector_output_dim)",
        WIDTH,
    ),
    (
        r"(mm_|projector_|connector_|qformer_|image_|audio_|encoder_)?(hidden_size|hidden_dim|embed_dim|embedding_dim)",
        WIDTH,
    ),
    (r"num_hidden_layers|n_layers?|num_layers|n_blocks|encoder_layers|decoder_layers|depth|num_blocks", LAYERS),
    (r"num_(encoder|decoder|vision|global|conv|block|text|qformer)_(hidden_)?(layers|blocks)", LAYERS),
    (r"num_(local_|attention_|attn_)?kv_heads|num_key_value_heads|n_head_kv|num_global_key_value_heads", KV_HEADS),
    (r"(num_attention_heads|n_heads?|num_heads|encoder_attention_heads|decoder_attention_heads)", HEADS),
    (
        r"(attention_)?head_dim|head_size|v_head_dim|d_kv|kv_channels|global_head_dim|attention_head_size|d_head",
        HEAD_DIM,
    ),
    (r"swa_head_dim|swa_v_head_dim|index_head_dim|linear_(key|value)_head_dim", HEAD_DIM),
    (r"qk_nope_head_dim|qk_rope_head_dim|rotary_dim|mamba_d_head|mamba_head_dim|time_step_rank|mamba_dt_rank", 8),
    (r"qk_head_dim", 16),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|.*_lora_rank|hidden_size_per_layer_input|laurel_rank", 16),
    (r"moe_intermediate_size|expert_intermediate_size|.*expert_ffn_hidden_size|moe_.*_size", 32),
    (r".*(intermediate_size|ffn_dim|ffn_hidden_size|inner_dim|n_inner|d_ff|mlp_dim|mlp_hidden_size|mlp_size)", INNER),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts)", EXPERTS),
    (
        r"(num_experts_per_tok(en)?|top_k_experts|moe_topk|moe_top_k|moe_k|num_selected_experts|experts_per_tok(en)?)",
        CHOSEN,
    ),
    (r"(n_shared_experts|num_shared_experts|moe_num_shared_experts|n_group|topk_group|num_expert_groups?)", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers", 1),
    (r"num_kv_shared_layers", 0),
    (
        r"max_position_embeddings|n_positions|max_seq_len|max_sequence_length|n_ctx|original_max_position_embeddings",
        POSITIONS,
    ),
    (r".*(sliding_window|window_size)|attention_chunk_size|local_attention|sliding_window_size", WINDOW),
    (r"mamba_n_heads|mamba_num_heads|linear_num_value_heads|n_mamba_heads", 8),
    (r"linear_num_key_heads|mamba_n_groups|n_groups|mamba_ngroups|index_n_heads", 2),
    (r"mamba_d_state|state_size|ssm_state_size|mamba_chunk_size|chunk_size", 8),
    (r"mamba_d_ssm|lru_width", WIDTH),
    (r"image_size|crop_size|input_size|force_image_size", 32),
    (r"patch_size", 8),
    (r"image_seq_length|mm_tokens_per_image|image_seq_len|num_image_tokens|num_query_tokens|num_queries", 16),
)
OFF = r".*(dropout|pdrop|_drop|layerdrop).*|drop_rate|.*jitter.*|.*aux_loss.*coef.*"  # noise, and losses beside ours
LAYER_LISTS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")

ALSO_NONE = ("head_dim", "num_key_value_heads", "n_shared_experts", "n_routed_experts")
"""Fields whose default is None in some configurations that then can't do without."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1]},  # heads x their width = 2 x hidden_size
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # attention alone by default
    "mamba2": {"num_heads": 8},
    "blt": {"encoder_hash_byte_group_vocab": 64},  # a hash table of 3,000,000 rows
    "ctrl": {"dff": INNER},
    "cpmant": {"dim_ff": INNER},
    "dbrx": {
        "attn_config": {
            "kv_n_heads": KV_HEADS,
            "clip_qkv": 8,
            "rope_theta": 1e4,
        },  # theta has no default
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": EXPERTS, "moe_top_k": CHOSEN},
    },
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
            for kind in ("full_attention", "sliding_attention")
        },  # None by default
    },
    "deepseek_v2": {"num_experts_per_tok": CHOSEN},  # None by default
    "mistral4": {"head_dim": HEAD_DIM},  # half of it is turned
    "dots1": {"n_routed_experts": EXPERTS, "num_experts_per_tok": CHOSEN},
    "dots3_note_text": {"num_key_value_heads": HEADS, "head_dim": 16},  # it has no grouped queries
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
    },  # of height and width, which take turns, and time
    "gemma3n_text": {"intermediate_size": INNER, "activation_sparsity_pattern": [0.95, 0.0]},  # of 35
    "qwen4_exp_text": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_DIM,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "glm5_next_text": {"num_key_value_heads": HEADS},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},  # a list of layers by another form
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},  # no default
    "reformer": {"is_decoder": True, "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (32, 32)},
    "roc_bert": {"shape_vocab_size": 32, "pronunciation_vocab_size": 32, "shape_embed_dim": 16},
    "xlm": {"n_heads": HEADS, "emb_dim": WIDTH},
    "xlstm": {"num_heads": HEADS},
    "zaya": {"num_experts_per_tok": 1},  # it supports no more
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "mamba", "hybrid"] * 2},  # shared by hybrids
}
"""Model type -> fields that the rule cannot know."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral_windows": ("mistral", {"sliding_window": WINDOW}),
    "qwen2_windows": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen2_moe_windows": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "mixtral_windows": ("mixtral", {"sliding_window": WINDOW}),
    "olmo_clipped": ("olmo", {"clip_qkv": 0.5}),
    "rwkv_rescaled": ("rwkv", {"rescale_every": 1}),
    "granitemoehybrid_dense": ("granitemoehybrid", {"num_local_experts": 0, "num_experts_per_tok": 0}),
    "jamba_dense": ("jamba", {"num_experts": 1, "num_experts_per_tok": 1}),
    "falcon_alibi": ("falcon", {"alibi": True}),
    "phi3_longrope": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 16,
            },
            "original_max_position_embeddings": 16,
        },
    ),
}
"""Name -> model type, and fields that turn on what its default leaves off."""


def model_types() -> list[str]:
    """Every model type that has a causal language model, or a text model inside a multimodal one."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def tiny_config(model_type: str, vocab_size: int) -> PreTrainedConfig:
    """The configuration of a tiny model of a type. Raises whatever its architecture raises if it can't be built so."""
    model_type, extra = VARIANTS.get(model_type, (model_type, {}))
    cls = CONFIG_MAPPING[model_type]
    return cls(**shrunk(cls(), vocab_size) | EXCEPTIONS.get(model_type, {}) | extra)


def shrunk(config: PreTrainedConfig, vocab_size: int) -> dict[str, Any]:
    """The fields of a configuration whose sizes are not the default's, by name."""
    found: dict[str, Any] = {}
    own = vars(config)
    for name, value in own.items():
        if isinstance(value, PreTrainedConfig):
            found[name] = {"model_type": value.model_type, **shrunk(value, vocab_size)}
            found[name] |= EXCEPTIONS.get(value.model_type, {})
        elif name == "is_decoder":
            found[name] = True
        elif isinstance(value, bool):
            continue
        elif value is None and name in ALSO_NONE:
            found[name] = _size(name)
        elif isinstance(value, (int, float)) and re.fullmatch(OFF, name):
            found[name] = type(value)(0)
        elif isinstance(value, int) and (size := _size(name)) is not None:
            found[name] = vocab_size if size == "vocab" else size
        elif name.endswith(("_token_id", "_token_index")):
            if isinstance(value, int):
                found[name] = value % vocab_size
    if isinstance(own.get("rope_parameters"), dict):
        found["rope_parameters"] = _short_sections(own["rope_parameters"], _has_sections(config))
    if "kv_lora_rank" in own and "num_key_value_heads" in own:
        found["num_key_value_heads"] = HEADS  # latent attention has no grouped queries
        if "head_dim" in found and "qk_rope_head_dim" in own:
            found["head_dim"] = _size("qk_rope_head_dim")  # what RoPE is for
    layers = [name for name in LAYER_LISTS if isinstance(own.get(name), (list, tuple)) and own[name]]
    if layers:
        kinds = _few_of_each(own[layers[0]])
        for name in layers:
            found[name] = [own[name][i] for i in kinds]
        found["num_hidden_layers"] = len(kinds)
    return found


def _has_sections(config: PreTrainedConfig) -> bool:
    """Whether a text model's RoPE has sections that only its code names."""
    name = config.model_type
    return "vl_text" in name or (name.endswith("_text") and name.startswith(("glm4v", "glm_ocr")))


def _short_sections(rope: dict[str, Any], has_sections: bool) -> dict[str, Any]:
    """RoPE in which the sections of text, height and width fit the width of a head."""
    if "mrope_section" not in rope and not has_sections:
        return {name: _short_sections(part, False) if isinstance(part, dict) else part for name, part in rope.items()}
    num_angles = int(HEAD_DIM * (rope.get("partial_rotary_factor") or 1.0)) // 2
    third = num_angles // 3
    return rope | {"mrope_section": [num_angles - 2 * third, third, third]}


def _size(name: str) -> Any:
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)


def _few_of_each(kinds: Any) -> list[int]:
    """The places of a few layers, in their order: the first of each kind, and at least LAYERS."""
    first = sorted({kind: place for place, kind in reversed(list(enumerate(kinds)))}.values())
    rest = [place for place in range(len(kinds)) if place not in first]
    return sorted(first + rest[: max(0, LAYERS - len(first))])[:MAX_LAYERS]


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
