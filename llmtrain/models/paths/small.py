"""A small copy of a model, with random weights, on which paths are tried in a moment.

It has a few of the model's layers, one of each kind (`layers.py`), its widths, a small vocabulary, few and narrow
experts. What depends on a document's length within the run's (a sliding window, chunked attention, the positions that
RoPE was trained with) is at BOUND tokens, so that a document of 23 is past it. Weights have the scale at which a
token's neighbours count: with those of a new model a leak is hardly seen.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmtrain.models.paths.layers import cut, few_layers, parts
from llmtrain.system.memory import is_out_of_memory

BOUND = 8  # tokens of a window, a chunk, the original positions
VOCABULARY = 128
EXPERTS, CHOSEN = 8, 2
INNER = 128  # of feed-forward layers
NOISE = re.compile(r".*drop.*|.*jitter.*")  # what a configuration calls the noise of training
OF_DOCUMENTS = re.compile(
    r".*window(_size)?|.*chunk(_size|_length)?|.*original_max_position_embeddings|local_attention|"
    r"block_size|index_topk|.*_budget|.*_extent"
)
"""Fields past which a long document is computed otherwise."""
OF_PLACES = re.compile(r".*floor(_scale)?")
"""Fields past which a token may be by its place in a pack, however short its document is (Llama 4)."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_COUNTS = ("num_experts_per_tok", "moe_top_k", "moe_topk", "moe_k", "top_k_experts")
GROUP_COUNTS = ("n_group", "topk_group")
INNER_SIZES = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")


def small_copy(model: PreTrainedModel, max_seq_len: int, attention: str) -> PreTrainedModel:
    """The copy, on the model's device in fp32, in eval mode.

    Takes the smallest of several shapes that the architecture accepts. Raises ValueError if it accepts none.
    """

    def leave_few_layers(shape: PreTrainedConfig) -> None:
        cut(shape, layers)

    layers = few_layers(model)
    faults = []
    for shrinks in ((_narrow, _few_words, leave_few_layers), (_few_words, leave_few_layers), (leave_few_layers,), ()):
        shape = copy.deepcopy(model.config)
        _unquantized(shape)
        without_noise(shape)
        _bound(shape, max_seq_len)
        for shrink in shrinks:
            shrink(shape)
        try:
            with torch.device(model.device), seeded(model.device):
                small = type(model)._from_config(shape, attn_implementation=attention, dtype=torch.float32)
                _scale(small)
            return small.to(model.device).eval()
        except Exception as error:  # each architecture validates in its own way, with its own exception types
            if is_out_of_memory(error):
                raise
            faults.append(error)
    raise ValueError(f"{model.config.model_type}: no small copy can be made to check its paths on ({faults[-1]})")


def made_from(model: PreTrainedModel) -> tuple[type[PreTrainedModel], str, str]:
    """What copies of a model are made from: of two models for which it is equal, one is tried."""
    return type(model), model.config.to_json_string(use_diff=False), model.device.type


def without_noise(shape: PreTrainedConfig) -> None:
    """Turn off dropout of activations and of layers, and jitter of routers, in place."""
    for part in parts(shape):
        for name in _noise(part):
            part[name] = type(part[name])(0)


def noise_of(shape: PreTrainedConfig) -> set[str]:
    """The fields of a configuration that are noise in training, and on."""
    return {name for part in parts(shape) for name in _noise(part)}


def _noise(fields: Mapping[str, Any]) -> list[str]:
    return [name for name, value in fields.items() if type(value) in (int, float) and value and NOISE.fullmatch(name)]


def stock_copy(model: PreTrainedModel, max_seq_len: int, small: PreTrainedModel) -> PreTrainedModel:
    """A twin of a small copy as `transformers` runs it: eager from the start, as a switch passes some models by."""
    stock = small_copy(model, max_seq_len, "eager")
    stock.load_state_dict(small.state_dict())
    return stock


def as_trained(small: PreTrainedModel) -> PreTrainedModel:
    """A small copy as it is in training, where some models run other code, but without dropout; in place."""
    for module in small.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return small.train()


@contextmanager
def seeded(device: torch.device) -> Iterator[None]:
    """The generators of the CPU and of a device at seed 0, then as they were; no other device's is touched."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.default_generator.manual_seed(0)
        if devices:
            torch.get_device_module(device).manual_seed(0)
        yield


def _unquantized(shape: PreTrainedConfig) -> None:
    for part in parts(shape):
        part.pop("quantization_config", None)


def _bound(shape: PreTrainedConfig, max_seq_len: int) -> None:
    """Lower each bound that a document of the run can be past, so that those of the check are."""
    for part in parts(shape):
        for name, value in part.items():
            if type(value) is int and value > BOUND:
                if OF_PLACES.fullmatch(name) or (value < max_seq_len and OF_DOCUMENTS.fullmatch(name)):
                    part[name] = BOUND


def _few_words(shape: PreTrainedConfig) -> None:
    for part in parts(shape):
        for name, value in part.items():
            if type(value) is int and value > VOCABULARY and name.startswith("vocab_size"):
                part[name] = VOCABULARY
            elif type(value) is int and value >= VOCABULARY and name.endswith(("_token_id", "_token_index")):
                part[name] = value % VOCABULARY
            elif name.endswith("_token_id") and isinstance(value, (list, tuple)):
                part[name] = [each % VOCABULARY for each in value]


def _narrow(shape: PreTrainedConfig) -> None:
    for part in parts(shape):
        for name, value in part.items():
            if name in INNER_SIZES and isinstance(value, (list, tuple)):  # a size for each layer (Gemma 3n)
                part[name] = type(value)(min(size, INNER) for size in value)
            if type(value) is not int:
                continue
            if name in EXPERT_COUNTS:
                part[name] = min(value, EXPERTS)
            elif name in CHOSEN_COUNTS:
                part[name] = min(value, CHOSEN)
            elif name in GROUP_COUNTS:
                part[name] = 1
            elif name in INNER_SIZES:
                part[name] = min(value, INNER)


@torch.no_grad()
def _scale(model: nn.Module) -> None:
    """Give every matrix the scale that keeps its outputs as large as its inputs."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and re.search(r"(weight|proj)$", name):
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
