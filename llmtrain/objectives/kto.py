"""KTO (Ethayarajh 2024): single answers labelled desirable or undesirable, each compared with the policy's KL.

    kl = max(0, mean over answers of log p(other | prompt) - log p_ref(other | prompt))

`other` is an answer to another prompt: the mean estimates how far the policy has moved from the reference (section
4.1). It is taken over all microbatches and ranks of a step, without gradient and without dropout, and travels in the
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmtrain.batch import LabelledAnswers
from llmtrain.objectives.policy_losses import per_sample
from llmtrain.objectives.preference_losses import correctness, kto
from llmtrain.protocols import BatchSource, Counts, Metrics, Ranks
from llmtrain.system.precision import reading

Mismatch = Callable[[LabelledAnswers], LabelledAnswers]
"""A microbatch -> the same prompts with answers to other prompts."""


@dataclass(frozen=True)
class KtoObjective:
    """KTO over the answers of a step; the model gives a logprob for each label."""

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def counts(self, batch: LabelledAnswers) -> Counts:
        """Tokens of answers, and answers, each by its weight."""
        return {"tokens": sum(batch.answer_lengths), "answers": float(batch.weights.sum())}

    def loss(self, model: nn.Module, batch: LabelledAnswers, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share of the mean over all answers of the step.

        `accuracy`: the fraction of answers on the right side of the KL. `signed_reward`: the mean implied reward, that
        of undesirable answers negated, so that higher is better.
        """
        assert batch.kl is not None
        ratios = log_ratios(model(batch).logprobs, batch)
        losses, rewards = self.losses_and_rewards(ratios, batch.desirable, batch.kl)
        share = (batch.weights * losses).sum() / totals["answers"]
        values = {
            "accuracy": kto_correctness(ratios.detach(), batch.desirable, batch.kl),
            "signed_reward": torch.where(batch.desirable, rewards, -rewards),
        }
        shares = {name: (batch.weights * value).sum() / totals["answers"] for name, value in values.items()}
        return share, {"loss": share.detach(), **shares}

    def losses_and_rewards(
        self, ratios: Float[Tensor, " answers"], desirable: Bool[Tensor, " answers"], kl: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " answers"], Float[Tensor, " answers"]]:
        """Losses, and implied rewards without gradient, of answers by their log ratios to the reference."""
        return kto(
            ratios,
            desirable,
            kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )


def log_ratios(logprobs: Float[Tensor, " labels"], batch: LabelledAnswers) -> Float[Tensor, " answers"]:
    """log p(answer) - log p_ref(answer) of each answer, in nats."""
    assert batch.ref_logprobs is not None
    return per_sample(logprobs, batch.answer_lengths) - batch.ref_logprobs


def kto_correctness(
    ratios: Float[Tensor, " answers"], desirable: Bool[Tensor, " answers"], kl: Float[Tensor, ""]
) -> Float[Tensor, " answers"]:
    """1 if a desirable answer's log ratio is above the KL, or an undesirable one's below; 0 if not; 1/2 for a tie."""
    return correctness(torch.where(desirable, ratios - kl, kl - ratios))


def step_kl(batches: Sequence[LabelledAnswers], module: nn.Module, ranks: Ranks) -> float:
    """The KL of a step, in nats per answer, of its mismatched microbatches. Collective.

    `module` gives logprobs of labels with its present weights, which are those before the step.
    """
    moved = weight = 0.0
    with ranks.gathered(module), reading(module, ranks.device, ranks.dtype):
        for batch in batches:
            placed = batch.to(ranks.device)
            ratios = log_ratios(module(placed).logprobs, placed)
            moved += float((placed.weights * ratios).double().sum())
            weight += float(placed.weights.double().sum())
    moved, weight = ranks.sum_floats([moved, weight])
    return max(0.0, moved / weight)


class KlBatches:
    """A batch source of labelled answers that adds the KL of each step to the batches of another source."""

    def __init__(
        self, source: BatchSource[LabelledAnswers], mismatch: Mismatch, module: nn.Module, ranks: Ranks
    ) -> None:
        self._source, self._mismatch, self._module, self._ranks = source, mismatch, module, ranks
        self._kl = 0.0
        self._present: list[LabelledAnswers] | None = None  # the step's microbatches, once their KL is known

    def next_step(self) -> list[LabelledAnswers] | None:
        """This rank's microbatches of the present step, with the KL of the weights before it; None after the last."""
        if self._present is None and (batches := self._source.next_step()) is not None:
            self._present = self._with_kl(batches)
        return self._present

    def advance(self) -> None:
        self._present = None
        self._source.advance()

    @property
    def epoch(self) -> float:
        return self._source.epoch

    def metrics(self) -> dict[str, float]:
        """The KL of the last step, in nats per answer."""
        return {"kl": self._kl, **self._source.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """The other source's: the KL follows from the weights."""
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._present = None
        self._source.load_state_dict(state)

    def _with_kl(self, batches: list[LabelledAnswers]) -> list[LabelledAnswers]:
        """The same microbatches, each with the KL of the whole step. Collective."""
        self._kl = step_kl([self._mismatch(batch) for batch in batches], self._module, self._ranks)
        return [replace(batch, kl=torch.tensor(self._kl)) for batch in batches]
