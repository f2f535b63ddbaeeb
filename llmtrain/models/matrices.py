"""How parameters hold the matrices that a model multiplies by: transposed, fused, stacked. Muon updates each matrix.

nn.Linear                (out, in)            one matrix
Conv1D of GPT-2          (in, out)            transposed
c_attn of GPT-2          (in, 3 * hidden)     transposed, and the matrices of query, key and value side by side
GPT-NeoX, Bloom          (heads * 3 * d, in)  d rows of query, key and value for each head in turn
experts                  (experts, out, in)   a matrix per expert; of gate_up_proj two
their adapters, A        (experts * rank, in) the matrices of the experts one below the other
their adapters, B        (out, rank * experts) their columns take turns
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmtrain.protocols import Matrices, MatrixLayout

Packing = Callable[[Any, int], tuple[int, tuple[int, ...]]]
"""(configuration, output rows) -> the layout's groups and parts."""

TRANSPOSED_EXPERTS = ("gpt_oss", "llama4_text", "aria_text")
GATE_UP = "gate_up_proj"  # halves in every model of transformers but gpt_oss, where its rows alternate
LOOKS_FUSED = re.compile(r"qkv|query_key_value|c_attn|gate_up|att_proj")


def _thirds(config: Any, rows: int) -> tuple[int, tuple[int, ...]]:
    return 1, (rows // 3,) * 3


def _by_head(config: Any, rows: int) -> tuple[int, tuple[int, ...]]:
    heads = config.num_attention_heads
    return heads, (rows // heads // 3,) * 3


def _grouped_queries(config: Any, rows: int) -> tuple[int, tuple[int, ...]]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_rows = rows // (heads + 2 * kv_heads)
    return 1, (heads * head_rows, kv_heads * head_rows, kv_heads * head_rows)


def _one_key(config: Any, rows: int) -> tuple[int, tuple[int, ...]]:
    heads = config.num_attention_heads
    head_rows = rows // (heads + 2)
    return 1, (heads * head_rows, head_rows, head_rows)


def _bigcode(config: Any, rows: int) -> tuple[int, tuple[int, ...]]:
    return (_one_key if config.multi_query else _by_head)(config, rows)


def _falcon(config: Any, rows: int) -> tuple[int, tuple[int, ...]]:
    if not config.new_decoder_architecture:
        return _bigcode(config, rows)
    groups, queries = config.num_kv_heads, config.num_attention_heads // config.num_kv_heads
    head_rows = rows // groups // (queries + 2)
    return groups, (queries * head_rows, head_rows, head_rows)


def _gate_up(config: Any, rows: int) -> tuple[int, tuple[int, ...]]:
    return (rows // 2, (1, 1)) if config.model_type == "gpt_oss" else (1, (rows // 2,) * 2)


FUSED: dict[tuple[str, str], Packing] = {
    ("gpt2", "c_attn"): _thirds,
    ("openai-gpt", "c_attn"): _thirds,
    ("mpt", "Wqkv"): _thirds,
    ("gpt_neox", "query_key_value"): _by_head,
    ("gpt_neox_japanese", "query_key_value"): _by_head,
    ("bloom", "query_key_value"): _by_head,
    ("persimmon", "query_key_value"): _by_head,
    ("falcon", "query_key_value"): _falcon,
    ("gpt_bigcode", "c_attn"): _bigcode,
    ("phi3", "qkv_proj"): _grouped_queries,
}
"""(model type, name of the module) -> how the matrices are packed."""


def matrices_of(model: PreTrainedModel) -> Matrices:
    """The layouts of trained parameters that are not one matrix, (out, in), and modules of which it is not known."""
    config = model.config.get_text_config()
    layouts: dict[nn.Parameter, MatrixLayout] = {}
    unknown: list[str] = []
    of_adapters = _of_adapters(model)
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter.ndim < 2 or isinstance(module, nn.Embedding):
                continue
            name = path.rpartition(".")[2] if leaf == "weight" else leaf
            layout = of_adapters.get(parameter) or _layout(module, parameter, name, config)
            if layout != MatrixLayout():
                layouts[parameter] = layout
            if LOOKS_FUSED.search(name) and not layout.parts and name not in unknown:
                unknown.append(name)
    return Matrices(layouts, unknown)


def _of_adapters(model: PreTrainedModel) -> dict[nn.Parameter, MatrixLayout]:
    """The layouts of the adapters on experts."""
    layouts: dict[nn.Parameter, MatrixLayout] = {}
    for wrapper in (module for module in model.modules() if isinstance(module, ParamWrapper)):
        for name, rank in wrapper.r.items():
            a, b = (part[name].get_parameter("weight") for part in (wrapper.lora_A, wrapper.lora_B))
            layouts[a] = MatrixLayout(parts=(rank,) * wrapper.num_experts)
            layouts[b] = MatrixLayout(taking_turns=wrapper.num_experts)
    return layouts


def _layout(module: nn.Module, parameter: nn.Parameter, name: str, config: Any) -> MatrixLayout:
    stacked = parameter.ndim == 3 and not isinstance(module, nn.Conv1d)
    transposed = isinstance(module, Conv1D) or (stacked and config.model_type in TRANSPOSED_EXPERTS)
    packing = _gate_up if name == GATE_UP else FUSED.get((config.model_type, name))
    if packing is None:
        return MatrixLayout(transposed, stacked)
    return MatrixLayout(transposed, stacked, *packing(config, parameter.shape[-1 if transposed else -2]))
