"""The way in which a model's responses grow: the fastest that gives what the model computes of the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from llmtrain.models.context import num_positions
from llmtrain.models.paths.choose import UNLIMITED_POSITIONS, difference, path_of, pseudo_random
from llmtrain.models.paths.path import is_on_plain_packs
from llmtrain.models.paths.small import made_from, small_copy, stock_copy
from llmtrain.models.paths.tried import Fault, tried
from llmtrain.models.trunk import run_model
from llmtrain.rollout.local.cache import RowCache
from llmtrain.rollout.local.forward import ROWS_MULTIPLE, Forward, Outputs
from llmtrain.rollout.local.whole_rows import as_transformers_runs_it, grow

Way = Literal["packs", "cached", "whole"]
"""Prompts prefilled in packs, then a token a step; `transformers`' own `generate` with its cache; and without one."""

PROMPTS, RESPONSE = (12, 12, 3, 9), 10  # tokens, past a small copy's bounds and short of them
SIDE_BY_SIDE = 2  # of the texts, which are equally long; a cache may mix rows

_KNOWN: dict[Any, Way] = {}  # of models that this process has seen


def way_of(model: PreTrainedModel) -> Way:
    """The fastest way that is right on a small copy of the model, tried once for each configuration.

    Raises ValueError for a model that grows otherwise than its own forward computes the whole text, in every way.
    """
    in_packs = _runs_in_packs(model)
    key = (made_from(model), in_packs)
    if key not in _KNOWN:
        _KNOWN[key] = _fastest(model, ("packs", "cached", "whole") if in_packs else ("cached", "whole"))
    return _KNOWN[key]


def _runs_in_packs(model: PreTrainedModel) -> bool:
    """Whether documents run in packs by attention alone; the start-up check of a model's own weights may refuse it."""
    if not is_on_plain_packs(model):
        return False
    path = path_of(model, run_model)
    return path.kernel == "segments" and not path.by_groups and not path.hands_bounds


@torch.no_grad()
def _fastest(model: PreTrainedModel, ways: Sequence[Way]) -> Way:
    longest = num_positions(model.config) or UNLIMITED_POSITIONS
    small = small_copy(model, longest, model.config._attn_implementation)
    response = min(RESPONSE, longest // 2)
    prompts = [min(length, longest - response) for length in PROMPTS]
    texts = [pseudo_random(small, length + response, seed) for seed, length in enumerate(prompts)]
    fault: str | None = None
    with torch.autocast(small.device.type, enabled=False):
        expected = _whole_texts(model, small, texts, prompts, longest)
        for way in ways:
            found = tried(partial(_grown, small, texts, prompts, way))
            fault = found if isinstance(found, Fault) else difference(found, expected[: len(found)])
            if fault is None:
                return way
    raise ValueError(
        f"{model.config.model_type}: generation is not what the model computes of the whole text ({fault}), so it "
        "cannot be sampled here"
    )


def _whole_texts(
    model: PreTrainedModel, small: PreTrainedModel, texts: Sequence[Tensor], prompts: Sequence[int], longest: int
) -> Float[Tensor, "grown vocab"]:
    """Logits of each token that grows, text after text, from `transformers`' own forward of one text at a time."""
    stock = stock_copy(model, longest, small)
    logits = [run_model(stock, {"input_ids": text[None], "use_cache": False}) for text in texts]
    return torch.cat([each[length - 1 : -1] for each, length in zip(logits, prompts, strict=True)]).float()


def _grown(
    small: PreTrainedModel, texts: Sequence[Tensor], prompts: Sequence[int], way: Way
) -> Float[Tensor, "grown vocab"]:
    """The same as a way gives it, of all texts or of the first ones."""
    if way == "packs":
        return _in_packs(small, texts, prompts)
    # Not of short ones: RoPE by length changes within a text that grows past its bound.
    return _in_rows(small, torch.stack(list(texts[:SIDE_BY_SIDE])), prompts[0], way)


def _in_packs(
    model: PreTrainedModel, texts: Sequence[Int[Tensor, " _"]], prompts: Sequence[int]
) -> Float[Tensor, "grown vocab"]:
    """The same by the steps of the packed way."""
    steps = len(texts[0]) - prompts[0]
    padding = [0] * (ROWS_MULTIPLE - len(texts))
    with Forward.opened(model, None, packs=False) as forward:
        begun = [tuple(text[:length].tolist()) for text, length in zip(texts, prompts, strict=True)]
        states, outputs = forward.prefill(begun)
        cache = RowCache().rearranged([], states, ROWS_MULTIPLE, max(map(len, texts)))
        logits = [outputs.logits]
        with forward.steps_of(cache.num_rows):
            for step in range(steps - 1):
                places = [length + step for length in prompts]
                ids = [int(text[place]) for text, place in zip(texts, places, strict=True)]
                logits.append(forward.step(ids + padding, places + padding, cache).first(len(texts)).logits)
    return torch.stack(logits, dim=1).flatten(0, 1).float()


def _in_rows(
    model: PreTrainedModel, texts: Int[Tensor, "rows tokens"], prompt: int, way: Way
) -> Float[Tensor, "grown vocab"]:
    """The same side by side, by `transformers`' own `generate`."""
    found: list[Tensor] = []

    def extend(outputs: Outputs) -> list[int]:
        found.append(outputs.logits)
        coming: list[int] = texts[:, prompt + len(found) - 1].tolist()
        return coming

    with as_transformers_runs_it(model):
        steps = texts.shape[1] - prompt
        grow(model, texts[:, :prompt].tolist(), steps, extend, lambda: False, None, cached=way == "cached")
    return torch.stack(found, dim=1).flatten(0, 1).float()
