"""Policy and critic as the one module that is trained: episodes in; logprobs, entropies and values out.

The critic is a head on the policy's trunk, or a trunk of its own. A reference is the same module of a frozen copy,
without a critic. Copies share what is frozen: with an adapter all roles stand on one base.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, Experience, LabelledAnswers, PackedTokens, PreferencePairs, SamplingMask
from llmtrain.models.attention import plan_segments
from llmtrain.models.heads.logprobs import LogprobHead, TokenLogprobs, logits_logprobs
from llmtrain.models.wrappers.causal_lm import CausalLMLoss, LossHead
from llmtrain.system.device import AttentionKernel

TokenBatch = Experience | LabelledAnswers | PackedTokens | PreferencePairs


class PolicyOutputs(NamedTuple):
    """What policy and critic say of each response token, end to end; nothing of no token, where one is not asked."""

    logprobs: Float[Tensor, " responses"]
    entropies: Float[Tensor, " responses"]
    values: Float[Tensor, " responses"] | None  # of the state that the token is drawn in; None: no critic was asked


class ValueHead(nn.Linear):
    """A scalar of each hidden state, in fp32 whatever the trunk's precision is; zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, " tokens"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())[:, 0]


class ActorCritic(nn.Module):
    """The one module that is trained."""

    def __init__(
        self,
        checked: CausalLMLoss,
        temperature: float,
        value_head: ValueHead | None = None,
        critic: nn.Module | None = None,
        *,
        trains_entropy: bool = True,
    ) -> None:
        """`checked` has passed the start-up check. `critic`: the value head's own trunk; None: the policy's.

        Without `trains_entropy` entropies are told and have no gradient, which saves time.
        """
        super().__init__()
        self.model: PreTrainedModel = checked.model
        self._no_split_modules = self.model._no_split_modules
        self.kernel: AttentionKernel = checked.kernel
        self.own_logits = checked.own_logits
        self.temperature = temperature
        self.trains_entropy = trains_entropy
        self.value_head, self.critic = value_head, critic
        head = self.model.get_output_embeddings()
        if not self.own_logits:
            assert head is not None
            if type(head) in (nn.Linear, LossHead):
                head.__class__ = LogprobHead  # keeps the module, its parameters and their names
            else:
                self.own_logits = True  # rows of new tokens stand beside it

    def forward(self, batch: TokenBatch) -> PolicyOutputs:
        """Logprobs, entropies and values at the batch's labels; of an empty batch none, but attached to the graph."""
        trains = batch.trains if isinstance(batch, Experience) else "both"
        if trains == "critic":
            values = self.values(batch)
            return PolicyOutputs(values.new_empty(0), values.new_empty(0), values)
        inputs, selected = self._inputs(batch)
        labels = batch.labels[selected]
        hidden: Tensor | None = None  # of the policy's trunk, where the head or the critic asks for them
        if not self.own_logits or (self.value_head is not None and self.critic is None):
            hidden = self.model.base_model(**inputs).last_hidden_state[0][selected]
        outputs = self._logprobs(hidden, labels, inputs, selected, batch.sampling_mask)
        if self.value_head is None or trains == "policy":
            return PolicyOutputs(outputs.logprobs, outputs.entropies, None)
        values = self.value_head(hidden) if self.critic is None else self._critic_values(inputs, selected)
        return PolicyOutputs(outputs.logprobs, outputs.entropies, values)

    @property
    def trunk_head(self) -> ValueHead | None:
        """The value head, where it reads what the policy's output head does."""
        return self.value_head if self.critic is None else None

    def values(self, batch: TokenBatch) -> Float[Tensor, " responses"]:
        """The values alone, of a critic with a trunk of its own."""
        return self._critic_values(*self._inputs(batch))

    def _critic_values(
        self, inputs: dict[str, Any], selected: Int[Tensor, " responses"]
    ) -> Float[Tensor, " responses"]:
        assert self.value_head is not None and self.critic is not None
        values: Tensor = self.value_head(self.critic(**inputs).last_hidden_state[0][selected])
        return values

    def _inputs(self, batch: TokenBatch) -> tuple[dict[str, Any], Int[Tensor, " responses"]]:
        """What a trunk is called with, and the places that have labels."""
        segments = plan_segments(batch.segment_lengths, self.kernel, batch.input_ids.device, batch.prefix_lengths)
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids[None],
            "position_ids": batch.position_ids[None],
            "segments": segments,
            "use_cache": False,
        }
        return inputs, (batch.labels != IGNORE_INDEX).nonzero()[:, 0]

    def _logprobs(
        self, hidden: Tensor | None, labels: Tensor, inputs: dict[str, Any], selected: Tensor, mask: SamplingMask | None
    ) -> TokenLogprobs:
        if self.own_logits:
            return logits_logprobs(self.model(**inputs).logits[0][selected], labels, self.temperature, mask)
        head = self.model.get_output_embeddings()
        outputs: TokenLogprobs = head(hidden, labels, self.temperature, mask, trains_entropy=self.trains_entropy)
        return outputs
