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

from llmtrain.models.paths.path import can_switch
from llmtrain.rollout.local.forward import Outputs, keeping_hidden

Extend = Callable[[Outputs], Sequence[int]]
"""The outputs after each row's last token -> its next token, which the caller has kept."""


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
