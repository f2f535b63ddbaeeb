"""Weights in a model's files that its class passes over: heads that predict several tokens at once.

GLM-4.5, DeepSeek V3, Qwen3.5 and others come with such a head (`mtp`), for servers that draft with it. `transformers`
has no module for it and drops it without a word, so it is neither trained nor in what a run exports.

A model's own layers may have other names in its files, as experts that are stored one by one do: `layers.46` is the
head of GLM-4.5-Air, and a layer of GLM-4.5. What is of a layer that the model has is not passed over.
"""

from __future__ import annotations

import math
import re

from safetensors import safe_open
from transformers import PreTrainedModel

from llmtrain.models.folders.bases import Base
from llmtrain.models.folders.saved_dtype import weight_files

MATRIX_DIMS = (2, 3)  # a stored table of frequencies or a mask has others
LAYER = re.compile(r".*?\.\d+(?=\.)")


def left_behind(model: PreTrainedModel, path: str, revision: str | None = None) -> str | None:
    """One line on the matrices in a model's files that the model has no place for; None: there are none."""
    passed_over = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    own = set(map(_layer, model.state_dict()))
    matrices: dict[str, int] = {}
    for file in weight_files(Base(path, revision)) if passed_over else ():
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                shape = tensors.get_slice(name).get_shape()
                if (
                    len(shape) in MATRIX_DIMS
                    and _layer(name) not in own
                    and any(each.search(name) for each in passed_over)
                ):
                    matrices[name] = math.prod(shape)
    if not matrices:
        return None
    return (
        f"model.path={path}: transformers has no place for {len(matrices)} of its matrices, such as {min(matrices)} "
        f"({sum(matrices.values()):,} weights): they are not trained, and not in what this run exports"
    )


def _layer(name: str) -> str:
    """The layer that a tensor is of, `model.layers.46`; of one outside of layers its own name."""
    found = LAYER.match(name)
    return name if found is None else found[0]
