"""The text model inside a multimodal one: its configuration, and its modules, which alone are trained.

    Gemma3ForConditionalGeneration
      model.vision_tower, model.multi_modal_projector     frozen, and exported as they were
      model.language_model, lm_head                       trained

A model of text alone is its own text model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKEN_FIELDS = ("_token_id", "_token_index", "_token_ids")


def is_multimodal(shape: PreTrainedConfig) -> bool:
    """Whether a configuration is of a model with its text model inside."""
    return shape.get_text_config() is not shape


def text_field(shape: PreTrainedConfig, name: str, default: int | None = None) -> int | None:
    """A number of the text model's configuration, by the name that all architectures know it by."""
    text = shape.get_text_config()
    found = text.to_dict().get(text.attribute_map.get(name, name), default)
    assert found is None or isinstance(found, int), (name, found)
    return found


def num_embeddings(model: PreTrainedModel) -> int:
    """How many tokens a model has embeddings for, those on other ranks too."""
    weight: Any = model.get_input_embeddings().weight  # peft's wrapper of an embedding hands on its attribute
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # DeepSpeed's, where a rank has a part


def require_rows(model: PreTrainedModel, ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for ids that a whole model has no embedding of, as a tokenizer with more tokens gives."""
    rows = num_embeddings(model)
    if (last := max(ids, default=0)) >= rows:
        raise ValueError(
            f"the token {tokenizer.convert_ids_to_tokens(last)!r} has the id {last:,} and the model only {rows:,} "
            "embeddings: give the tokenizer that the model was trained with"
        )


def require_trunk(model: PreTrainedModel) -> None:
    """Raise ValueError for a model whose hidden states cannot be had: its trunk has its head inside."""
    trunk = model.base_model
    if trunk is model or (isinstance(trunk, PreTrainedModel) and trunk.get_output_embeddings() is not None):
        raise ValueError(
            f"{model.config.model_type}: transformers gives no hidden states of its {type(model).__name__}, which a "
            "score or a value is read from: train it by pretraining, SFT or preferences, or its language model alone"
        )


def text_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder, its embedding and its head; of a model of text alone the model itself."""
    if not is_multimodal(model.config):
        return [model]
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    return [part for part in parts if isinstance(part, nn.Module)]


def text_parameters(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """The parameters of the text model, each once."""
    return iter({id(each): each for part in text_modules(model) for each in part.parameters()}.values())


def parameters_beside(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters that are no part of the text model, each once."""
    own = {id(parameter) for parameter in text_parameters(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in own]


def freeze_other_parts(model: PreTrainedModel) -> int:
    """Freeze what is no part of the text model, such as a vision tower; how many weights these are."""
    frozen = parameters_beside(model)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen)


def text_prefix(model: nn.Module) -> str:
    """The name of the text model's decoder in a multimodal model, with a dot; empty for any other model."""
    if not isinstance(model, PreTrainedModel) or not is_multimodal(model.config):
        return ""
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return f"{name}." if name else ""


def special_token_ids(shape: PreTrainedConfig) -> frozenset[int]:
    """The ids that a configuration, or one inside it, gives a meaning: padding, image tokens, ..."""
    found: set[int] = set()
    for part in {id(each): each for each in (shape, shape.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if name.endswith(TOKEN_FIELDS):
                found.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
    return frozenset(found)
