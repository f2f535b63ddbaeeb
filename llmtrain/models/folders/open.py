"""A finished model for use: a run's folder, a model's folder or an adapter's -> a model and tokenizer that chat."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmtrain.models.adapters.quantized import keep_layout
from llmtrain.models.folders.classes import language_class
from llmtrain.models.folders.files import load_fault, require_readable
from llmtrain.models.folders.generation import ONE_ANSWER, read_generation
from llmtrain.models.folders.given import given_folder, is_adapter
from llmtrain.models.folders.kind import LANGUAGE
from llmtrain.models.folders.packed_weights import require_opener, unpacking
from llmtrain.models.folders.saved_dtype import differing_dtype, saved_dtype
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say
from llmtrain.system.tokenizer import require_reading


def open_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, an adapter on its base included, on this machine's device, and its tokenizer.

    `path`: a folder of a run, a model or an adapter, a GGUF file, or a name of the hub. Raises ValueError if there is
    no language model, or an adapter whose base is not there or not its own.
    """
    place = given_folder(path)
    folder = local_path(place)
    if folder.is_dir():
        require_readable(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if folder.is_dir() else place)
        require_reading(tokenizer)
        if is_adapter(folder):
            from llmtrain.models.folders.adapter import adapter_kind, open_adapter

            if (kind := adapter_kind(folder)) is not LANGUAGE:
                raise ValueError(f"it holds a {kind.noun}")
            model: Any = open_adapter(folder, tokenizer)
            if (generation := read_generation(folder)) is not None:  # peft takes the base's: no tuned end of turn
                model.generation_config = model.get_base_model().generation_config = generation
        else:
            where = str(folder) if folder.is_dir() else place
            shape = AutoConfig.from_pretrained(where)
            require_opener(shape, where)
            model = language_class(shape).from_pretrained(where, dtype=saved_dtype(where), **unpacking(shape))
            keep_layout(model)
        model = model.to(_device()).eval()
        first = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        # Some fields are read here first.
        model.generate(input_ids=first, max_new_tokens=1, do_sample=False, **ONE_ANSWER)
        if (difference := differing_dtype(place)) is not None:
            say(difference)
    except Exception as error:  # of a folder that is not right, libraries raise errors of any class
        raise ValueError(f"{place}: cannot be loaded ({load_fault(error)})") from None
    return model, tokenizer


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")
