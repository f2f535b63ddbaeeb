"""A model without weights, as others are to load it, and `transformers` kept quiet where one is read or written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from llmtrain.models.folders.kind import ModelKind
from llmtrain.models.paths.tried import FAULTS
from llmtrain.system.files import one_line


def skeleton(
    shape: PreTrainedConfig, kind: ModelKind, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model without weights, on the meta device, as others are to load it: with a cache, not quantized.

    It takes no memory, so whatever fails is in the configuration, such as a size below zero: ValueError.
    """
    shape = copy.deepcopy(shape)
    shape.use_cache = True
    vars(shape).pop("quantization_config", None)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = kind.auto_class(shape).from_config(
                shape, attn_implementation="eager", dtype=dtype, trust_remote_code=trust_remote_code
            )
    except (*FAULTS, ArithmeticError) as error:
        raise ValueError(f"its configuration makes no model: {one_line(error)}") from None
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers' progress bars out of the log."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
