"""A model from a configuration, or from a checkpoint: any dense causal LM that `transformers` has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.sections import ModelConfig, PretrainedModelConfig, TunedModelConfig
from llmtrain.models.adapters.quantized import nf4, num_weights
from llmtrain.models.adapters.token_rows import HeadWithRows
from llmtrain.models.attention import ATTENTION
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.protocols import Role

VOCAB_MULTIPLE = 64  # matmuls over the vocabulary run on whole tiles

# Llama shapes: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size,
# tie_word_embeddings. From 60m on the proportions follow SmolLM2 (135M, 360M) and Llama 2 and 3 (1B, 3B, 7B).
PRESETS: dict[str, tuple[int, int, int, int, int, bool]] = {
    "1m": (128, 4, 4, 4, 384, True),
    "3m": (192, 6, 6, 6, 512, True),
    "10m": (320, 8, 5, 5, 864, True),
    "60m": (512, 16, 8, 4, 1408, True),
    "125m": (768, 14, 12, 4, 2048, True),
    "350m": (960, 32, 15, 5, 2560, True),
    "1b": (2048, 16, 32, 8, 8192, True),
    "3b": (3072, 28, 24, 8, 8192, True),
    "7b": (4096, 32, 32, 32, 11008, False),
}
SHAPE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "tie_word_embeddings",
)
EXPERT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
DROPOUT_FIELDS = (
    "activation_dropout",
    "attention_probs_dropout_prob",
    "embed_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "resid_dropout",
    "attention_dropout",
    "attn_pdrop",
    "classifier_dropout_prob",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "emb_pdrop",
    "ffn_dropout",
    "hidden_dropout",
    "residual_dropout",
    "resid_pdrop",
)


def load_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, max_seq_len: int, seed: int
) -> PreTrainedModel:
    """The model of a run, in fp32, with document attention: new and initialised from `seed`, or continued.

    Raises ValueError for a preset, architecture or field that does not exist, a mixture of experts, a model
    with a smaller vocabulary than the tokenizer's, or with fewer positions than `max_seq_len`.
    """
    if config.path is not None:
        return load_pretrained(config, tokenizer, max_seq_len=max_seq_len)
    shape = _new_config(config, tokenizer, max_seq_len)
    _check(shape, tokenizer, max_seq_len)
    _set_dropout(shape, config.dropout)
    torch.manual_seed(seed)
    try:
        return AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION, dtype=torch.float32)
    except KeyError:  # how architectures with a table of their own attentions fail
        raise ValueError(
            f"{shape.model_type} does not go through transformers' attention interface: not supported"
        ) from None


def load_pretrained(
    config: PretrainedModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_len: int,
    new_token_ids: Sequence[int] = (),
) -> PreTrainedModel:
    """A given model with document attention: in fp32, or its linear layers in 4 bits and the rest in bf16.

    `new_token_ids`, of tokens that the tokenizer was given after the model was made, get rows of the embedding and
    the head that are the mean of the others (Hewitt 2021, "Initializing new word embeddings"). Raises ValueError as
    `load_model` does, for a model whose weights are quantized already, and for `quantize` where it cannot run.
    """
    path = resolved_path(config.path)
    shape = _pretrained_config(config, path)
    _check(shape, tokenizer, max_seq_len, new_token_ids)
    _set_dropout(shape, config.dropout)
    placement: dict[str, Any] = {"dtype": torch.float32}
    if isinstance(config, TunedModelConfig) and config.quantize == "nf4":
        placement = {
            "quantization_config": nf4(),
            "dtype": torch.bfloat16,
            "device_map": {"": torch.cuda.current_device()},
        }
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            config=shape,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=ATTENTION,
            **placement,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path={config.path}: {_one_line(error)}") from None
    if new_token_ids:
        _make_rows(model, new_token_ids)
    return model


def parameters_by_role(model: PreTrainedModel) -> dict[Role, list[nn.Parameter]]:
    """Trainable parameters by what they do; a head that is tied to the embedding counts as embedding.

    So do the rows of new tokens, wherever they stand. The matrices of an adapter are hidden ones.
    """
    looked_up = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embedded = {id(parameter) for module in looked_up for parameter in module.parameters(recurse=False)}
    head = model.get_output_embeddings()
    if isinstance(head, HeadWithRows):
        embedded.add(id(head.rows))
    roles: dict[Role, list[nn.Parameter]] = {"hidden": [], "head": [], "embedding": [], "vector": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embedded:
            roles["embedding"].append(parameter)
        elif parameter.ndim < 2:
            roles["vector"].append(parameter)
        else:
            roles["head" if head is not None and parameter is head.weight else "hidden"].append(parameter)
    return roles


def attention_flops_per_token(shape: PreTrainedConfig, context: float) -> float:
    """Forward and backward FLOPs of causal attention for one token, 12 * layers * width * context / 2.

    `context` is the mean length of a segment in tokens; each token sees half of its segment on average
    (PaLM, appendix B, counts all of it).
    """
    width = _field(shape, "num_attention_heads") * head_dim(shape)
    return 12 * _field(shape, "num_hidden_layers") * width * context / 2


def flops_per_token(model: PreTrainedModel, context: float, trained_share: float = 1.0) -> float:
    """FLOPs that training on one token needs: 6 per weight that multiplies it, plus attention (PaLM, appendix B).

    A frozen weight has no gradient of its own, and counts 4: forward, and backward to its input. An embedding is a
    look-up and counts nothing, unless its weight is also the output head's, which runs at the `trained_share` of the
    tokens.
    """
    head = model.get_output_embeddings()
    multiplying = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
    weights = {id(weight): weight for module in multiplying for weight in module.parameters(recurse=False)}
    flops = attention_flops_per_token(model.config, context)
    for weight in weights.values():
        share = trained_share if head is not None and weight is head.weight else 1.0
        flops += share * (6 if weight.requires_grad else 4) * num_weights(weight)
    return flops


def attention_dropout(shape: PreTrainedConfig) -> float:
    """The dropout that a model's attention applies in training; 0 where its configuration names none."""
    values = shape.to_dict()
    return max(values.get(name) or 0.0 for name in ("attention_dropout", "attn_pdrop"))


def hub_commit(shape: PreTrainedConfig) -> str | None:
    """The commit of the hub repository that a model's configuration came from; None for a local or new one."""
    commit: str | None = vars(shape).get("_commit_hash")
    return commit


def head_dim(shape: PreTrainedConfig) -> int:
    """Width of one attention head."""
    explicit = shape.to_dict().get("head_dim")
    return explicit or _field(shape, "hidden_size") // _field(shape, "num_attention_heads")


def _field(shape: PreTrainedConfig, name: str) -> int:
    return int(getattr(shape, name))  # through the architecture's attribute_map


def _pretrained_config(config: PretrainedModelConfig, path: str) -> PreTrainedConfig:
    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        raise ValueError(f"model.path={config.path}: no such folder")
    try:
        shape = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path={config.path}: {_one_line(error)}") from None
    assert isinstance(shape, PreTrainedConfig)
    if shape.to_dict().get("quantization_config"):
        raise ValueError(
            f"model.path={config.path}: its weights are quantized: take the model that they were made from"
        )
    return shape


def _new_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> PreTrainedConfig:
    try:
        blank = AutoConfig.for_model(config.architecture)
    except ValueError:
        raise ValueError(f"model.architecture={config.architecture!r} is no model type of transformers") from None
    known = {*blank.to_dict(), *blank.attribute_map}
    if unknown := sorted(set(config.config) - known):
        raise ValueError(f"model.config.{unknown[0]}: {config.architecture} has no such field")
    if "vocab_size" in config.config:  # before transformers warns of special tokens past its end
        _check_vocabulary(tokenizer, config.config["vocab_size"], "raise model.config.vocab_size")
    fields: dict[str, Any] = {
        "vocab_size": -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        "max_position_embeddings": max_seq_len,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.preset is not None:
        if config.preset not in PRESETS:
            raise ValueError(f"model.preset={config.preset!r}: there are {', '.join(PRESETS)}")
        preset = dict(zip(SHAPE_FIELDS, PRESETS[config.preset], strict=True)) | config.config
        preset.setdefault("head_dim", preset["hidden_size"] // preset["num_attention_heads"])
        fields |= {name: value for name, value in preset.items() if name in known}
    elif not config.config:
        raise ValueError("model: give model.path, model.preset or fields in model.config")
    try:
        return AutoConfig.for_model(config.architecture, **fields | config.config)
    except Exception as error:  # each architecture validates in its own way, with its own exception types
        raise ValueError(f"model.config: {_one_line(error)}") from None


def _check(
    shape: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_seq_len: int, new_token_ids: Sequence[int] = ()
) -> None:
    values = shape.to_dict()
    nested = [values, *(value for value in values.values() if isinstance(value, dict))]
    if experts := [part[name] for part in nested for name in EXPERT_FIELDS if (part.get(name) or 0) > 1]:
        raise ValueError(
            f"{shape.model_type} is a mixture of {experts[0]} experts, which is not supported yet: "
            "its balance loss would be missing"
        )
    num_rows = max([shape.vocab_size, *(token_id + 1 for token_id in new_token_ids)])
    _check_vocabulary(tokenizer, num_rows, "take the model's own tokenizer")
    positions = values.get(shape.attribute_map.get("max_position_embeddings", "max_position_embeddings"))
    if positions is not None and max_seq_len > positions:
        raise ValueError(f"data.max_seq_len={max_seq_len} is longer than the model's {positions} positions")


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, mend: str) -> None:
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model only {vocab_size} embeddings: {mend}"
        )


@torch.no_grad()
def _make_rows(model: PreTrainedModel, new_token_ids: Sequence[int]) -> None:
    """Rows of the embedding and the head for new tokens, each the mean of the rows of the tokens before them."""
    if max(new_token_ids) >= model.config.vocab_size:
        model.resize_token_embeddings(max(new_token_ids) + 1, mean_resizing=False)
    num_known = min(new_token_ids)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight: Any = module.weight
        weight[list(new_token_ids)] = weight[:num_known].float().mean(dim=0).to(weight.dtype)


def _set_dropout(shape: PreTrainedConfig, dropout: float | None) -> None:
    """Write the dropout that was asked for into every field that means it. Raises ValueError where there is none."""
    if dropout is None:
        return
    present = [name for name in DROPOUT_FIELDS if name in shape.to_dict()]
    if dropout and not present:
        raise ValueError(f"model.dropout={dropout}: {shape.model_type} has no dropout")
    for name in present:
        setattr(shape, name, dropout)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
