"""The batches of KTO: stored answers, and how far the policy has moved from the reference, of the whole step.

    kl = max(0, mean over answers of log p(other | prompt) - log p_ref(other | prompt))

`other` answers another prompt: the mean estimates the KL of the policy, over which each answer is judged
(Ethayarajh 2024, section 4.1). It is taken over all microbatches and ranks, without gradient and without dropout, and
travels in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llmtrain.batch import JudgedAnswers
from llmtrain.objectives.preference import log_ratios
from llmtrain.protocols import BatchSource, Ranks
from llmtrain.system.precision import reading


class KlBatches:
    """A batch source of judged answers that adds the KL to another's."""

    def __init__(
        self,
        source: BatchSource[JudgedAnswers],
        mismatched: Callable[[JudgedAnswers], JudgedAnswers],
        module: nn.Module,
        ranks: Ranks,
    ) -> None:
        """`mismatched`: the documents of a microbatch with other answers; `module` gives logprobs of labels."""
        self._source, self._mismatched, self._module, self._ranks = source, mismatched, module, ranks
        self._kl = 0.0
        self._present: list[JudgedAnswers] | None = None  # the step's microbatches, once their KL is known

    def next_step(self) -> list[JudgedAnswers] | None:
        """This rank's microbatches of the present step, with the KL of the weights before it; None after the last."""
        if self._present is None and (batches := self._source.next_step()) is not None:
            self._present = self._with_kl(batches)
        return self._present

    def advance(self) -> None:
        self._present = None
        self._source.advance()

    def metrics(self) -> dict[str, float]:
        """The KL of the last step, in nats per answer."""
        return {"kl": self._kl, **self._source.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """The other source's: the KL follows from the weights."""
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._present = None
        self._source.load_state_dict(state)

    def _with_kl(self, batches: list[JudgedAnswers]) -> list[JudgedAnswers]:
        """The same microbatches, each with the KL of the whole step. Collective."""
        moved = weight = 0.0
        ranks = self._ranks
        with ranks.gathered(self._module), reading(self._module, ranks.device, ranks.dtype):
            for batch in map(self._mismatched, batches):
                placed = batch.to(ranks.device)
                ratios = log_ratios(self._module(placed).logprobs, placed)
                moved += float((placed.weights * ratios).double().sum())
                weight += float(placed.weights.double().sum())
        moved, weight = ranks.sum_floats([moved, weight])
        self._kl = max(0.0, moved / weight)
        return [replace(batch, kl=torch.tensor(self._kl)) for batch in batches]
