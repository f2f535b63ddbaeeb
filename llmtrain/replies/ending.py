"""Where a reply ends, for `transformers`' own generation: at a stop token, or where its text completes a stop text.

`transformers` looks for stop texts in its own way; this is the way of rollouts, so that a model ends alike in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from llmtrain.models.folders.generation import ONE_ANSWER
from llmtrain.models.stop_texts import StopTexts, stop_texts
from llmtrain.models.stops import Stops


class End(NamedTuple):
    """The end of a reply."""

    num_tokens: int  # with the token that ends it
    stopped: bool
    stop_text: str | None = None  # the text that this token completes


class Ending:
    """What ends the replies of a model."""

    def __init__(self, stops: Stops, tokenizer: PreTrainedTokenizerBase) -> None:
        self.stops = stops
        self._texts = stop_texts(stops.texts, tokenizer)

    def settings(self, num_prompt: int) -> dict[str, Any]:
        """Arguments of `transformers`' generate, for prompts that are padded to `num_prompt` tokens."""
        criteria = [] if self._texts is None else [_CompletesText(self._texts, num_prompt)]
        return {
            **ONE_ANSWER,
            "eos_token_id": list(self.stops.ids) or None,
            "stopping_criteria": StoppingCriteriaList(criteria),
        }

    def of(self, written: Sequence[int]) -> End:
        """The end of a reply; `written`: its ids, with padding after the token that ends it."""
        for number, id_ in enumerate(written, start=1):
            if id_ in self.stops.ids:
                return End(number, True)
            found = None if self._texts is None else self._texts.ended_by(written[:number])
            if found is not None:
                return End(number, True, found)
        return End(len(written), False)


class _CompletesText(StoppingCriteria):
    """Which rows have a stop text after their prompts."""

    def __init__(self, texts: StopTexts, num_prompt: int) -> None:
        self._texts, self._num_prompt = texts, num_prompt

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], scores: Any, **_: Any) -> Bool[Tensor, " rows"]:
        ended = [self._texts.ended_by(row) is not None for row in input_ids[:, self._num_prompt :].tolist()]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
