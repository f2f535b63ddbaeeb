"""A model from a configuration, or from a checkpoint: any causal LM that `transformers` has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import ModelConfig, PretrainedModelConfig, TunedModelConfig
from llmtrain.models.adapters.lora import lora_config
from llmtrain.models.adapters.quantized import keep_layout, nf4
from llmtrain.models.adapters.targets import ALL_LINEAR
from llmtrain.models.attention import ATTENTION
from llmtrain.models.context import described, num_positions, with_context
from llmtrain.models.folders.adapter import adapter_kind, adapter_tokenizer, open_merged
from llmtrain.models.folders.bases import innermost
from llmtrain.models.folders.files import is_other_shapes, load_fault, require_readable, require_whole
from llmtrain.models.folders.given import given_folder, is_adapter
from llmtrain.models.folders.kind import LANGUAGE
from llmtrain.models.folders.known_base import require_base
from llmtrain.models.folders.left_behind import left_behind
from llmtrain.models.folders.packed_weights import (
    FOUR_BITS,
    as_stored,
    require_trainable_form,
    stored_form,
    unpacking,
)
from llmtrain.models.folders.saved_dtype import differing_dtype
from llmtrain.models.folders.skeleton import skeleton
from llmtrain.models.paths.path import can_switch
from llmtrain.models.paths.small import without_noise
from llmtrain.models.presets import preset_fields, preset_size
from llmtrain.models.text_part import freeze_other_parts, num_embeddings
from llmtrain.protocols import Report
from llmtrain.system.files import one_line
from llmtrain.system.paths import is_local, local_path, no_folder
from llmtrain.system.terminal import say

AnyModel = TypeVar("AnyModel", bound=PretrainedModelConfig)

PRESET_RATIO = 2  # an architecture of a preset's width and depth may have more or fewer matrices than a Llama
VOCAB_MULTIPLE = 64  # matmuls over the vocabulary run on whole tiles
LOAD_ERRORS = (
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
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


def resolve_model(config: AnyModel) -> AnyModel:
    """The model section, with a GGUF file or a run replaced by a folder: a model's, or an adapter's.

    Everything after this knows folders and hub ids only. Raises ValueError as `given_folder` and `require_readable` do,
    and for the adapter of a reward model.
    """
    if config.path is None:
        return config
    try:
        folder = given_folder(config.path)
    except ValueError as error:
        raise ValueError(f"model.path={error}") from None
    if local_path(folder).is_dir():
        require_readable(local_path(folder))
    if is_adapter(folder) and adapter_kind(local_path(folder)) is not LANGUAGE:
        raise ValueError(f"model.path={config.path}: holds the adapter of a reward model, not of a language model")
    return config.model_copy(update={"path": folder})


def load_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_len: int,
    seed: int,
    new_token_ids: Sequence[int] = (),
    report: Report = say,
) -> PreTrainedModel:
    """The model of a run, in fp32, with document attention: new and initialised from `seed`, or continued.

    `new_token_ids`, of a continued model, as for `load_pretrained`. Raises ValueError for a preset, architecture or
    field that does not exist, a model with a smaller vocabulary than the tokenizer's, or with fewer positions than
    `max_seq_len`.
    """
    if config.path is not None:
        return load_pretrained(config, tokenizer, max_seq_len=max_seq_len, new_token_ids=new_token_ids, report=report)
    shape = _new_config(config, tokenizer, max_seq_len)
    _check(shape, tokenizer, max_seq_len)
    _set_dropout(shape, config.dropout)
    torch.manual_seed(seed)
    return LANGUAGE.auto_class(shape).from_config(shape, attn_implementation=_attention(shape), dtype=torch.float32)


def load_pretrained(
    config: PretrainedModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_len: int,
    new_token_ids: Sequence[int] = (),
    adapter: Path | None = None,
    report: Report = say,
) -> PreTrainedModel:
    """A given model with document attention: in fp32, or its linear layers in 4 bits and the rest in bf16.

    An adapter is added into its base, in fp32 and in memory. What `config.config` changes of its positions is reported.
    `adapter`: the folder of one whose base the model must be, as it goes on being trained on it.

    `new_token_ids`, of tokens that the tokenizer was given after the model was made, get rows of the embedding and
    the head that are the mean of the others (Hewitt 2021, "Initializing new word embeddings"). Raises ValueError as
    `load_model` does, for weights that are quantized already in another way, for 4 bits if they cannot run, and as
    `require_base` does.
    """
    shape = _pretrained_config(config)
    if config.config:
        given, shape = shape, with_context(shape, config.config, config.path)
        report(f"model.path={config.path} with other positions: {described(given, shape) or 'no difference'}")
    _check(shape, tokenizer, max_seq_len, new_token_ids)
    _set_dropout(shape, config.dropout)
    if is_adapter(config.path):
        report(f"model.path={config.path}: an adapter, added into its base in memory")
        folder = local_path(config.path)
        base = _saved_config(config)
        _set_dropout(base, config.dropout)
        model = open_merged(
            folder,
            config.trust_remote_code,
            config=base,
            attn_implementation=_attention(base, config.trust_remote_code),
            dtype=torch.float32,
            report=report,
        )
    else:
        model = _loaded(config, shape)
        if (lost := left_behind(model, config.path, config.revision)) is not None:
            report(lost)
    if (difference := differing_dtype(config.path, config.revision, config.trust_remote_code)) is not None:
        report(difference)
    if adapter is not None:
        doubt = require_base(adapter, config.path, PeftConfig.from_pretrained(str(adapter)), model)
        if doubt is not None:
            report(doubt)
    if new_token_ids:
        _make_rows(model, new_token_ids)
    if num_frozen := freeze_other_parts(model):
        report(f"{shape.model_type}: the text model is trained; {num_frozen:,} weights beside it stay as they are")
    return model


def _loaded(config: PretrainedModelConfig, shape: PreTrainedConfig) -> PreTrainedModel:
    """The model of a folder or the hub, of a configuration that may say more than its own."""
    placement: dict[str, Any] = {"dtype": torch.float32, **unpacking(shape)}
    if isinstance(config, TunedModelConfig) and config.quantize == "nf4":
        placement = {
            "quantization_config": nf4(),
            "dtype": torch.bfloat16,
            "device_map": {"": torch.cuda.current_device()},
        }
    elif stored_form(shape) in FOUR_BITS:
        placement = as_stored(shape, f"model.path={config.path}")
    try:
        model: PreTrainedModel
        model, loading = LANGUAGE.auto_class(shape).from_pretrained(
            config.path,
            config=shape,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=_attention(shape, config.trust_remote_code),
            output_loading_info=True,
            **placement,
        )
        require_whole(model, loading["missing_keys"])
    except LOAD_ERRORS as error:
        if isinstance(error, RuntimeError) and not is_other_shapes(error):
            raise
        raise ValueError(f"model.path={config.path}: {load_fault(error)}") from None
    keep_layout(model)
    return model


def _attention(shape: PreTrainedConfig, trust_remote_code: bool = False) -> str:
    """What a model's attention is loaded as: ours, or `transformers`' own for one that has it built in."""
    model = skeleton(shape, LANGUAGE, torch.float32, trust_remote_code)
    if can_switch(model):
        return ATTENTION
    return "sdpa" if model._supports_sdpa else "eager"


def require_fit(
    config: PretrainedModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_len: int,
    new_token_ids: Sequence[int] = (),
    adapter: AdapterConfig | None = None,
) -> None:
    """Raise ValueError as loading would, for what a model's configuration alone decides: before any weight is read.

    Fields, positions, vocabulary, dropout, quantized weights, and the layers and modules that `adapter` names.
    """
    if isinstance(config, ModelConfig) and config.path is None:
        shape = _new_config(config, tokenizer, max_seq_len)
    else:
        shape = _pretrained_config(config)
    if config.path is not None and config.config:
        shape = with_context(shape, config.config, config.path)
    if adapter is None and (form := stored_form(shape)) in FOUR_BITS:
        raise ValueError(
            f"model.path={config.path}: its weights are quantized ({form}) and cannot be trained: set "
            "adapter.kind=lora, or take the model that they were made from"
        )
    _check(shape, tokenizer, max_seq_len, new_token_ids)
    _set_dropout(shape, config.dropout)
    if adapter is not None and (
        adapter.target != ALL_LINEAR
        or adapter.target_parameters
        or adapter.layers is not None
        or adapter.modules_to_save
    ):
        model = skeleton(shape, LANGUAGE, torch.float32, config.trust_remote_code)
        lora_config(model, adapter, model.get_output_embeddings())


def hub_commit(shape: PreTrainedConfig) -> str | None:
    """The commit of the hub repository that a model's configuration came from; None for a local or new one."""
    commit: str | None = vars(shape).get("_commit_hash")
    return commit


def _pretrained_config(config: PretrainedModelConfig) -> PreTrainedConfig:
    """The configuration of a given model, with a row for each token of an adapter's tokenizer."""
    shape = _saved_config(config)
    if not is_adapter(config.path):
        require_trainable_form(config, shape)
    else:
        key = "model.config" if config.config else None
        if isinstance(config, TunedModelConfig) and config.quantize is not None:
            key = f"model.quantize={config.quantize}"
        if key is not None:
            raise ValueError(
                f"{key}: model.path={config.path} is an adapter, which is added into its base as it is: "
                f"`llmtrain merge {config.path} OUTPUT` first, and give OUTPUT"
            )
        vars(shape).pop("quantization_config", None)  # it is added into the values of the 4 bits
        num_tokens = len(adapter_tokenizer(local_path(config.path)))
        text = shape.get_text_config()
        text.vocab_size = max(text.vocab_size, num_tokens)
    return shape


def _saved_config(config: PretrainedModelConfig) -> PreTrainedConfig:
    """The configuration that is saved with a model, or with the base of an adapter."""
    if is_local(config.path) and not local_path(config.path).is_dir():
        raise ValueError(f"model.path={config.path}: {no_folder(config.path)}")
    path, revision = innermost(config.path, config.revision)
    try:
        shape = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # each architecture validates in its own way, with its own exception types
        raise ValueError(f"model.path={config.path}: {load_fault(error)}") from None
    assert isinstance(shape, PreTrainedConfig)
    return shape


def _new_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> PreTrainedConfig:
    try:
        blank = AutoConfig.for_model(config.architecture)
    except ValueError:
        raise ValueError(f"model.architecture={config.architecture!r} is not a model type of transformers") from None
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
        preset = preset_fields(config.preset) | config.config
        preset.setdefault("head_dim", preset["hidden_size"] // preset["num_attention_heads"])
        fields |= {name: value for name, value in preset.items() if name in known}
    elif not config.config:
        raise ValueError("model: give model.path, model.preset or fields in model.config")
    try:
        shape: PreTrainedConfig = AutoConfig.for_model(config.architecture, **fields | config.config)
    except Exception as error:  # each architecture validates in its own way, with its own exception types
        raise ValueError(f"model.config: {one_line(error)}") from None
    if config.preset is not None and not config.config:
        _require_size(shape, config)
    return shape


def _require_size(shape: PreTrainedConfig, config: ModelConfig) -> None:
    """Raise ValueError for an architecture that a preset gives another size than its name says."""
    assert config.preset is not None
    meant = preset_size(config.preset, shape.get_text_config().vocab_size)
    model = skeleton(shape, LANGUAGE, torch.float32, config.trust_remote_code)
    weights = dict(model.named_parameters())
    size = sum(weight.numel() for weight in weights.values())
    if not meant / PRESET_RATIO <= size <= meant * PRESET_RATIO:
        largest = max(weights, key=lambda name: weights[name].numel())
        raise ValueError(
            f"model.preset={config.preset}: {config.architecture} would have {size:,} weights with it, not about "
            f"{meant:,}, {weights[largest].numel():,} of them in {largest}: give its own fields in model.config"
        )


def _check(
    shape: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_seq_len: int, new_token_ids: Sequence[int] = ()
) -> None:
    num_rows = max([shape.get_text_config().vocab_size, *(token_id + 1 for token_id in new_token_ids)])
    _check_vocabulary(tokenizer, num_rows, "take the model's own tokenizer")
    positions = num_positions(shape)
    if positions is not None and max_seq_len > positions:
        raise ValueError(
            f"data.max_seq_len={max_seq_len} is longer than the model's {positions} positions: lower it, or set "
            "model.config.max_position_embeddings, with model.config.rope_parameters if the model has RoPE"
        )


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, fix: str) -> None:
    if len(tokenizer) > vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens but the model only {vocab_size} embeddings: {fix}")


@torch.no_grad()
def _make_rows(model: PreTrainedModel, new_token_ids: Sequence[int]) -> None:
    """Rows of the embedding and the head for new tokens, each the mean of the rows of the tokens before them."""
    if max(new_token_ids) >= num_embeddings(model):
        model.resize_token_embeddings(max(new_token_ids) + 1, mean_resizing=False)
    num_known = min(new_token_ids)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in module.parameters():  # the matrix, and the bias that some heads have
            parameter[list(new_token_ids)] = parameter[:num_known].float().mean(dim=0).to(parameter.dtype)


def _set_dropout(shape: PreTrainedConfig, dropout: float | None) -> None:
    """Write the dropout that was asked for into every field that means it; at 0 all other noise of training is off too.

    Raises ValueError if there is none.
    """
    if dropout is None:
        return
    text = shape.get_text_config()
    if not dropout:
        without_noise(text)
    present = [name for name in DROPOUT_FIELDS if name in text.to_dict()]
    if dropout and not present:
        raise ValueError(f"model.dropout={dropout}: {shape.model_type} has no dropout")
    for name in present:
        setattr(text, name, dropout)
