"""Responses by `transformers`' own `generate`, for a model that the packed way does not fit: a state that is no keys
and values (Mamba, short convolutions), frequencies by length, an attention of its own.

Rows of a call have prompts of one length, so there is no padding. The tokens are drawn with our noise, by a processor
that leaves one token possible; so they are those that the packed way would draw, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from llmtrain.models.context import num_positions
from llmtrain.models.paths.choose import FAULTS, UNLIMITED_POSITIONS, difference, pseudo_random
from llmtrain.models.paths.path import can_switch
from llmtrain.models.paths.small import small_copy
from llmtrain.models.trunk import run_model
from llmtrain.rollout.local.forward import Outputs, keeping_hidden
from llmtrain.system.files import one_line
from llmtrain.system.memory import is_out_of_memory

Extend = Callable[[Outputs], Sequence[int]]
"""The outputs after each row's last token -> its next token, which the caller has kept."""
TRIED_ROWS, TRIED_TOKENS = 3, (12, 10)  # of a prompt, which is past a small copy's bounds, and of its response

_CACHES: dict[Any, bool] = {}  # models that this process has seen


class _Drawn(LogitsProcessor):
    """Leaves only the token that was drawn."""

    def __init__(self, extend: Extend, values: Callable[[], Float[Tensor, " rows"] | None]) -> None:
        self._extend, self._values = extend, values

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocab"]) -> Tensor:
        chosen = self._extend(Outputs(scores, self._values()))
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, torch.tensor(chosen, device=scores.device)[:, None], 0.0)


class _Ended(StoppingCriteria):
    """All rows at once: one that ended goes on beside the others, and its tokens are not kept."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self._ended = ended

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._ended(), dtype=torch.bool, device=input_ids.device)


def can_cache(model: PreTrainedModel) -> bool:
    """Whether a model computes with its cache what it computes without, which is slower; tried once on a small copy.

    Raises ValueError for a model that `generate` runs otherwise than its own forward, without a cache too.
    """
    key = (type(model), model.config.to_json_string(use_diff=False))
    if key not in _CACHES:
        longest = num_positions(model.config) or UNLIMITED_POSITIONS
        small = small_copy(model, longest, "sdpa" if model._supports_sdpa else "eager")
        faults = []
        for cached in (True, False):
            if (fault := _generation_fault(small, cached)) is None:
                _CACHES[key] = cached
                break
            faults.append(fault)
        else:
            raise ValueError(
                f"{model.config.model_type}: generation is not what the model computes of the whole text "
                f"({faults[-1]}), so it cannot be sampled here"
            )
    return _CACHES[key]


def _generation_fault(small: PreTrainedModel, cached: bool) -> str | None:
    """How logits of responses that grow side by side differ from those of the whole texts; None: they do not."""
    prompt, response = TRIED_TOKENS
    ids = pseudo_random(small, TRIED_ROWS * (prompt + response)).view(TRIED_ROWS, -1)
    found: list[Tensor] = []

    def extend(outputs: Outputs) -> list[int]:
        found.append(outputs.logits.float())
        next_ids: list[int] = ids[:, prompt + len(found) - 1].tolist()
        return next_ids

    with torch.no_grad(), torch.autocast(small.device.type, enabled=False):
        try:
            grow(small, ids[:, :prompt].tolist(), response, extend, lambda: False, None, cached=cached)
        except FAULTS as error:
            if is_out_of_memory(error):
                raise
            return one_line(error)
        whole = [run_model(small, {"input_ids": row[None], "use_cache": False})[prompt - 1 : -1] for row in ids]
    return difference(torch.stack(found, dim=1).flatten(0, 1), torch.cat(whole).float())


def grow(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    extend: Extend,
    ended: Callable[[], bool],
    value_head: nn.Module | None,
    *,
    cached: bool,
) -> None:
    """Give each prompt, all of one length, token after token by `extend`, until `ended` or `max_new_tokens`.

    `cached`: keep what the model computed of the tokens before, else compute the whole text for each token.
    """
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0, use_cache=cached)
    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    with keeping_hidden(model, value_head) as values:
        generate: Any = model.generate  # typed as a parameter
        generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Drawn(extend, values)]),
            stopping_criteria=StoppingCriteriaList([_Ended(ended)]),
        )


@contextmanager
def as_transformers_runs_it(model: PreTrainedModel) -> Iterator[None]:
    """A model without dropout and gradients, with its own attention and generation defaults of ours; then as it was."""
    modes = [(module, module.training) for module in model.modules()]
    attention, generation = model.config._attn_implementation, model.generation_config
    own = "sdpa" if model._supports_sdpa else "eager"
    try:
        model.eval()
        model.generation_config = GenerationConfig()
        if can_switch(model):
            model.set_attn_implementation(own)
        with torch.no_grad():
            yield
    finally:
        model.generation_config = generation
        if can_switch(model):
            model.set_attn_implementation(attention)
        for module, training in modes:
            module.training = training
