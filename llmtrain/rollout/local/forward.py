"""A model's forwards while it generates: prompts in one pack, then a token a row, by the shortest way there is.

For steps in fp32 on a CPU that is `decoder`, where the model has its shape, with the layers of `step_linear`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.trunk import Documents, pack_inputs
from llmtrain.rollout.local.cache import CACHED_ATTENTION, LayerStates, PackedStates, RowCache
from llmtrain.rollout.local.cpu_decoder import Decoder, can_decode
from llmtrain.rollout.local.cpu_linear import StepLinears

ROWS_MULTIPLE = 8  # of a batch on a CPU; a product of 9 to 15 rows takes longer than one of 16
PREFILL_MIN_TOKENS = 16  # below, MKL takes another path


@dataclass(frozen=True)
class Said:
    """What the model and the value head say behind some tokens."""

    logits: Float[Tensor, "places vocab"]
    values: Float[Tensor, " places"] | None  # by the value head; None: there is none

    @classmethod
    def joined(cls, parts: Sequence[Said]) -> Said:
        values = [part.values for part in parts if part.values is not None]
        return cls(torch.cat([part.logits for part in parts]), torch.cat(values) if values else None)

    def at(self, places: Sequence[int]) -> Said:
        """Of the places with these numbers."""
        chosen = torch.tensor(places, device=self.logits.device)
        return Said(self.logits[chosen], None if self.values is None else self.values[chosen])

    def first(self, count: int) -> Said:
        """Of so many places, without a copy."""
        return Said(self.logits[:count], None if self.values is None else self.values[:count])


class Forward:
    """The forwards of one generation, within which the model has no dropout, no gradients and a cache's attention."""

    def __init__(self, model: PreTrainedModel, value_head: nn.Module | None, *, packs: bool) -> None:
        self.device, self.packs = model.device, packs
        self._model, self._value_head = model, value_head
        self._linears: StepLinears | None = None
        self._decoder = Decoder(model) if can_decode(model) else None
        self._hidden: Tensor | None = None  # what the output head has read last

    @classmethod
    @contextmanager
    def opened(cls, model: PreTrainedModel, value_head: nn.Module | None, *, packs: bool) -> Iterator[Self]:
        """The model is left as it was. `packs`: responses are long enough for packed layers."""
        modes = [(module, module.training) for module in model.modules()]
        attention: str = model.config._attn_implementation
        # A model compiled for packs would be compiled anew for the shapes of each step.
        compiled = model.base_model._compiled_call_impl is not None
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        try:
            model.eval()
            model.set_attn_implementation(CACHED_ATTENTION)
            forward = cls(model, value_head, packs=packs)
            with torch.no_grad(), eager, forward._watching():
                yield forward
        finally:
            model.set_attn_implementation(attention)
            for module, training in modes:
                module.training = training

    def prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[list[LayerStates], Said]:
        """Keys and values of each prompt, and what is behind its last token, from one packed forward."""
        lengths = [len(prompt) for prompt in prompts]
        lacking = max(0, PREFILL_MIN_TOKENS - sum(lengths))
        packed = [token for prompt in prompts for token in prompt] + [0] * lacking
        segment_lengths = [*lengths, lacking] if lacking else lengths
        ends = torch.tensor(lengths).cumsum(0)
        last = torch.cat([ends - 1, torch.zeros(max(0, PREFILL_MIN_TOKENS - len(prompts)), dtype=torch.long)])
        cache = PackedStates()
        documents = Documents(
            torch.tensor(packed, device=self.device),
            torch.cat([torch.arange(length) for length in segment_lengths]).to(self.device),
            tuple(segment_lengths),
        )
        cached = {"past_key_values": cache, "use_cache": True, "logits_to_keep": last.to(self.device)}
        outputs = self._model(**pack_inputs(documents, "segments") | cached)
        states = [cache.span(end - length, end) for length, end in zip(lengths, ends.tolist(), strict=True)]
        return states, self._said(outputs.logits[0]).first(len(prompts))

    @contextmanager
    def steps_of(self, num_rows: int) -> Iterator[None]:
        """Within it, steps are of `num_rows` rows."""
        if self._linears is None or self._linears.rows != num_rows:
            self._linears = None  # the old copies go first
            together = self._decoder.together if self._decoder is not None else ()
            self._linears = StepLinears(self._model, num_rows, packs=self.packs, together=together)
        with self._linears.in_use():
            yield

    def step(self, token_ids: Sequence[int], positions: Sequence[int], cache: RowCache) -> Said:
        """What is behind one more token of each row, which stands at its position."""
        cache.place(positions, self.device)
        tokens, places = torch.tensor([token_ids, positions], device=self.device)
        if self._decoder is not None:
            assert self._linears is not None
            return self._said(self._decoder.logits(tokens, places, cache, self._linears))
        inputs: dict[str, Any] = {"input_ids": tokens[:, None], "position_ids": places[:, None]}
        outputs = self._model(**inputs, past_key_values=cache, cached=cache, use_cache=True, logits_to_keep=1)
        return self._said(outputs.logits[:, -1])

    def _said(self, logits: Float[Tensor, "places vocab"]) -> Said:
        if self._value_head is None:
            return Said(logits, None)
        assert self._hidden is not None
        return Said(logits, self._value_head(self._hidden.flatten(0, -2)))

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Keep what the output head reads, where there is a value head."""
        if self._value_head is None:
            yield
            return

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._hidden = inputs[0]

        head = self._model.get_output_embeddings()
        assert head is not None
        hook = head.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            hook.remove()
