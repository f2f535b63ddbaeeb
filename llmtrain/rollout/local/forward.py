"""The model's forwards during generation: prompts in one pack, then one token per row and step.

In fp32 on a CPU, steps take a fast path: `cpu_decoder` if the model is of Llama's shape, with the layers of
`cpu_linear`. Everything else runs through `transformers`' forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.trunk import Documents, packed_inputs
from llmtrain.rollout.local.cache import CACHED_ATTENTION, LayerStates, PackedStates, RowCache
from llmtrain.rollout.local.cpu_decoder import Decoder, can_decode
from llmtrain.rollout.local.cpu_linear import StepLinears

ROWS_MULTIPLE = 8  # of a batch on a CPU; a product of 9 to 15 rows takes longer than one of 16
PREFILL_MIN_TOKENS = 16  # below, MKL takes another path


@dataclass(frozen=True)
class Outputs:
    """The outputs of the model and of the value head after some tokens."""

    logits: Float[Tensor, "places vocab"]
    values: Float[Tensor, " places"] | None  # None: no value head

    @classmethod
    def concat(cls, parts: Sequence[Outputs]) -> Outputs:
        values = [part.values for part in parts if part.values is not None]
        return cls(torch.cat([part.logits for part in parts]), torch.cat(values) if values else None)

    def at(self, places: Sequence[int]) -> Outputs:
        """The outputs at the places with these numbers."""
        chosen = torch.tensor(places, device=self.logits.device)
        return Outputs(self.logits[chosen], None if self.values is None else self.values[chosen])

    def first(self, count: int) -> Outputs:
        """The outputs at the first places, without a copy."""
        return Outputs(self.logits[:count], None if self.values is None else self.values[:count])


class Forward:
    """The forwards of one generation. Within it the model has no dropout, no gradients, and attends to a cache."""

    def __init__(self, model: PreTrainedModel, *, packs: bool) -> None:
        self.device, self.packs = model.device, packs
        self._model = model
        self._values: Callable[[], Float[Tensor, " places"] | None] = lambda: None  # of the last places
        self._linears: StepLinears | None = None
        self._decoder = Decoder(model) if can_decode(model) else None

    @classmethod
    @contextmanager
    def opened(cls, model: PreTrainedModel, value_head: nn.Module | None, *, packs: bool) -> Iterator[Self]:
        """Sets the model up, and back as it was. `packs`: responses are long enough for packed layers to pay off."""
        modes = [(module, module.training) for module in model.modules()]
        attention: str = model.config._attn_implementation
        # A model compiled for packs would be compiled again for the shapes of each step.
        compiled = model.base_model._compiled_call_impl is not None
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        try:
            model.eval()
            model.set_attn_implementation(CACHED_ATTENTION)
            forward = cls(model, packs=packs)
            with torch.no_grad(), eager, keeping_hidden(model, value_head) as forward._values:
                yield forward
        finally:
            model.set_attn_implementation(attention)
            for module, training in modes:
                module.training = training

    def prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[list[LayerStates], Outputs]:
        """Keys and values of each prompt, and the outputs after its last token, from one packed forward."""
        lengths = [len(prompt) for prompt in prompts]
        padding = max(0, PREFILL_MIN_TOKENS - sum(lengths))
        packed = [token for prompt in prompts for token in prompt] + [0] * padding
        segment_lengths = [*lengths, padding] if padding else lengths
        ends = torch.tensor(lengths).cumsum(0)
        last = torch.cat([ends - 1, torch.zeros(max(0, PREFILL_MIN_TOKENS - len(prompts)), dtype=torch.long)])
        cache = PackedStates()
        documents = Documents(
            torch.tensor(packed, device=self.device),
            torch.cat([torch.arange(length) for length in segment_lengths]).to(self.device),
            tuple(segment_lengths),
        )
        cached = {"past_key_values": cache, "use_cache": True, "logits_to_keep": last.to(self.device)}
        outputs = self._model(**packed_inputs(documents, "segments") | cached)
        states = [cache.span(end - length, end) for length, end in zip(lengths, ends.tolist(), strict=True)]
        return states, self._outputs(outputs.logits[0]).first(len(prompts))

    @contextmanager
    def steps_of(self, num_rows: int) -> Iterator[None]:
        """A context in which steps have `num_rows` rows."""
        if self._linears is None or self._linears.rows != num_rows:
            self._linears = None  # the old copies go first
            together = self._decoder.together if self._decoder is not None else ()
            self._linears = StepLinears(self._model, num_rows, packs=self.packs, together=together)
        with self._linears.in_use():
            yield

    def step(self, token_ids: Sequence[int], positions: Sequence[int], cache: RowCache) -> Outputs:
        """The outputs after one more token of each row, at its position."""
        cache.place(positions, self.device)
        tokens, places = torch.tensor([token_ids, positions], device=self.device)
        if self._decoder is not None:
            assert self._linears is not None
            return self._outputs(self._decoder.logits(tokens, places, cache, self._linears))
        inputs: dict[str, Any] = {"input_ids": tokens[:, None], "position_ids": places[:, None]}
        outputs = self._model(**inputs, past_key_values=cache, cached=cache, use_cache=True, logits_to_keep=1)
        return self._outputs(outputs.logits[:, -1])

    def _outputs(self, logits: Float[Tensor, "places vocab"]) -> Outputs:
        return Outputs(logits, self._values())


@contextmanager
def keeping_hidden(
    model: PreTrainedModel, value_head: nn.Module | None
) -> Iterator[Callable[[], Float[Tensor, " places"] | None]]:
    """What the value head makes of the last input of the output head, which it reads too; None without a value head."""
    if value_head is None:
        yield lambda: None
        return
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[:] = [inputs[0]]

    def values() -> Tensor:
        found: Tensor = value_head(kept[0].flatten(0, -2))
        return found

    head = model.get_output_embeddings()
    assert head is not None
    hook = head.register_forward_pre_hook(keep)
    try:
        yield values
    finally:
        hook.remove()
