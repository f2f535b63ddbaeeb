"""What a base is known by: its weights, and all of its configuration that changes the forward.

Two models with equal facts give equal logits: the reference logprobs of one are those of the other, and an adapter that
was trained on one fits the other. Equal weights alone do not decide that: RoPE's theta, epsilons, activations, windows
and soft caps are in the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xxhash
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmtrain.models.adapters.token_rows import EmbeddingWithRows
from llmtrain.models.heads.score import SCORE
from llmtrain.system.cores import usable_cores

HASH_DIGITS = 32  # hexadecimal
BLOCK = 1 << 22  # values that one thread hashes at a time
REPLACED = ".original_module."  # what a module trained in full replaces: it computes nothing, and may be random
BESIDE = (".lora_", ".rows", ".modules_to_save.")  # parts of the names of an adapter's parameters

# Fields of a configuration that change no logit of the known tokens: names, versions, storage, what generation and
# initialisation take, what a head for scores adds. `_token_id` ends the names of special tokens; dropout is off in a
# base that is not trained. Any other field counts, also one that this version has never heard of.
LEFT_OUT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "label2id",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)


def base_facts(
    model: PreTrainedModel,
    num_known_tokens: int | None = None,
    *,
    whole: bool = False,
    trunk_only: bool = False,
) -> dict[str, Any]:
    """`weights`, 32 hexadecimal digits that any changed value changes, and `configuration`, a tree of plain values.

    The weights are hashed in memory, as they compute (xxh3, 0.2 s for 1 GB on one core): so they are those of a
    converted file and of a merged adapter too. They are the same with and without an adapter, unless that has modules
    that are trained in full, and for a model that scores whatever its head is: that is trained in full beside an
    adapter. `whole`: adapter and head count too, and not what a module trained in full replaces; `trunk_only`: no head
    does, as in a model that is to score. Of the embedding and the head only the first `num_known_tokens` rows count, by
    default those before the first new token: the rows after them are not the base's own.
    """
    return {
        "weights": _weights(model, num_known_tokens, whole, trunk_only),
        "configuration": forward_configuration(model.config),
    }


def forward_configuration(shape: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration that change the forward, as JSON has them; those that are off are left out."""
    plain: dict[str, Any] = json.loads(json.dumps(shape.to_dict(), default=str))
    return _forward_fields(plain)


def _forward_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in sorted(fields.items()):
        if name in LEFT_OUT or name.endswith("_token_id") or "drop" in name or name.startswith("summary_"):
            continue
        inner = _forward_fields(value) if isinstance(value, dict) else value
        if inner not in (None, False, {}):  # a later version of transformers has more fields, which are off
            kept[name] = inner
    return kept


def _weights(model: PreTrainedModel, num_known_tokens: int | None, whole: bool, trunk_only: bool) -> str:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, EmbeddingWithRows):
        num_known_tokens = int(embedding.row_ids.min())
    by_token = [module.weight for module in (embedding, head) if isinstance(module, nn.Module)]
    hasher = xxhash.xxh3_128()
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        for name, parameter in model.named_parameters():
            beside = any(part in name for part in BESIDE) or name.startswith(f"{SCORE}.")
            if REPLACED in name if whole else beside:
                continue
            if trunk_only and not name.startswith(f"{model.base_model_prefix}."):
                continue
            weight = parameter[:num_known_tokens] if any(parameter is matrix for matrix in by_token) else parameter
            plain = name.replace(".base_layer", "").replace(".original_module", "")
            hasher.update(f"{plain} {tuple(weight.shape)} ".encode())
            for digest in pool.map(_hash, weight.detach().reshape(-1).split(BLOCK)):
                hasher.update(digest)
    return str(hasher.hexdigest())


def _hash(values: Tensor) -> bytes:
    """The hash of values in fp32, which every 16-bit value has exactly."""
    return bytes(xxhash.xxh3_128_digest(values.float().cpu().contiguous().numpy().data))
