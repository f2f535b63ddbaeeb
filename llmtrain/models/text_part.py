"""The text model inside a multimodal one: its configuration, and its modules, which alone are trained.

    Gemma3ForConditionalGeneration
      model.vision_tower, model.multi_modal_projector     frozen, and exported as they were
      model.language_model, lm_head                       trained

    Phi4MultimodalForCausalLM, whose configuration is that of its text model too
      model.embed_tokens_extend                           frozen: it holds the sub-models that take images and sound
      all else                                            trained

A model of text alone is its own text model.
"""

from __future__ import annotations

import re
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
    """The modules of the text model, each with all that is inside it and not in `parts_beside`."""
    if not is_multimodal(model.config):
        return [model]
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    return [part for part in parts if isinstance(part, nn.Module)]


def parts_beside(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name -> module that text never enters, in a model whose text model has no configuration inside the whole one.

    A sub-model that takes no text, such as a vision tower, with the modules around it that hold no sub-model of text
    and not the embedding: its projection.
    """
    modules = dict(model.named_modules())
    towers = [name for name, module in modules.items() if _takes_text(module) is False]
    if not towers or is_multimodal(model.config):
        return {}
    embedding, found = model.get_input_embeddings(), set[str]()
    for name in towers:
        parts = name.split(".")
        around = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        outside = [path for path in around if not _holds_text(modules[path], embedding)]
        found.update(outside[:1])  # the outermost
    return {name: modules[name] for name in sorted(found)}


def _holds_text(part: nn.Module, embedding: nn.Module) -> bool:
    return any(_takes_text(each) or each is embedding for each in part.modules())


def _takes_text(module: nn.Module) -> bool | None:
    """Whether a model takes text beside whatever else; None: the module is no model."""
    return "text" in module.input_modalities if isinstance(module, PreTrainedModel) else None


def text_parameters(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """The parameters of the text model, each once."""
    beside = {id(each) for part in parts_beside(model).values() for each in part.parameters()}
    found = {id(each): each for part in text_modules(model) for each in part.parameters()}
    return (parameter for key, parameter in found.items() if key not in beside)


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


def text_names(model: nn.Module) -> str:
    """A regular expression that the names of a text model's modules begin with, and of no other part of the model.

    Empty if the model has no other part: `model\\.language_model\\.`, or `(?!model\\.embed_tokens_extend\\.)`.
    """
    if not isinstance(model, PreTrainedModel):
        return ""
    if not is_multimodal(model.config):
        return "".join(rf"(?!{re.escape(name)}\.)" for name in sorted(parts_beside(model)))
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return re.escape(f"{name}.") if name else ""


def special_token_ids(shape: PreTrainedConfig) -> frozenset[int]:
    """The ids that a configuration, or one inside it, gives a meaning: padding, image tokens, ..."""
    found: set[int] = set()
    for part in {id(each): each for each in (shape, shape.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if name.endswith(TOKEN_FIELDS):
                found.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
    return frozenset(found)
