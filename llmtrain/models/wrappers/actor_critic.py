"""Policy and critic as the one module that is trained: episodes in; logprobs, entropies and values out.

The critic is a head on the policy's trunk, or has its own trunk. A reference is the same module of a frozen copy,
without a critic. Copies share what is frozen: with an adapter all roles use one base.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, Experience, SamplingMask
from llmtrain.models.heads.head import output_head
from llmtrain.models.heads.logprobs import LogprobOptions, TokenLogprobs, logits_logprobs
from llmtrain.models.param_kinds import parameters_by_kind
from llmtrain.models.trunk import Inputs, TokenBatch, layer_classes, pack_inputs, run_model, run_trunk
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.protocols import ParamKind, TrainedModule
from llmtrain.system.device import AttentionKernel


class ResponseBatch(TokenBatch, Protocol):
    """A microbatch whose labels a policy gives logprobs of."""

    @property
    def labels(self) -> Int[Tensor, " tokens"]: ...  # IGNORE_INDEX where none is asked for
    @property
    def sampling_mask(self) -> SamplingMask | None: ...  # for each label; None: any token could be drawn


class PolicyOutputs(NamedTuple):
    """Outputs of policy and critic at each response token, end to end; empty for one that the batch does not train."""

    logprobs: Float[Tensor, " responses"]
    entropies: Float[Tensor, " responses"]
    values: Float[Tensor, " responses"] | None  # of the state that the token is drawn in; None: the critic did not run


class ValueHead(nn.Linear):
    """A scalar of each hidden state, in fp32 whatever the trunk's precision is; zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, " tokens"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())[:, 0]


class ActorCritic(TrainedModule):
    """The one module that is trained."""

    def __init__(
        self,
        policy: CausalLMLoss,
        temperature: float,
        value_head: ValueHead | None = None,
        critic: nn.Module | None = None,
        *,
        trains_entropy: bool = True,
    ) -> None:
        """`policy` has passed the start-up check. `critic`: the value head's own trunk; None: the policy's.

        Without `trains_entropy` entropies are reported and have no gradient, which saves time.
        """
        super().__init__()
        self.model: PreTrainedModel = policy.model
        self._no_split_modules = layer_classes(self.model)
        self.kernel: AttentionKernel = policy.kernel
        self.path, self.unreached = policy.path, policy.unreached
        self.form = policy.form
        self.whole_logits = policy.whole_logits or not output_head(policy.model).has_logprobs
        self.temperature = temperature
        self.trains_entropy = trains_entropy
        self.value_head, self.critic = value_head, critic

    def trunks(self) -> list[PreTrainedModel]:
        return [self.model, *([self.critic] if isinstance(self.critic, PreTrainedModel) else [])]

    def parameters_by_kind(self) -> dict[ParamKind, list[nn.Parameter]]:
        kinds = parameters_by_kind(self.model, self.unreached.ids)
        policys = {id(parameter) for group in kinds.values() for parameter in group}
        critics = [part for part in (self.value_head, self.critic) if part is not None]
        parameters = [parameter for part in critics for parameter in part.parameters() if parameter.requires_grad]
        return kinds | {"critic": [parameter for parameter in parameters if id(parameter) not in policys]}

    def facts(self) -> dict[str, str | bool]:
        return {
            "attention": self.kernel,
            "whole_logits": self.whole_logits,
            "path": self.path.line,
            "unreached": self.unreached.line,
        }

    def forward(self, batch: ResponseBatch) -> PolicyOutputs:
        """Logprobs, entropies and values at the batch's labels; none for an empty batch, but attached to the graph."""
        trains = batch.trains if isinstance(batch, Experience) else "both"
        if trains == "critic":
            values = self.values(batch)
            return PolicyOutputs(values.new_empty(0), values.new_empty(0), values)
        inputs, selected = pack_inputs(batch, self.kernel), _label_places(batch)
        hidden: Tensor | None = None  # of the policy's trunk, if its head or the critic reads them
        if not self.whole_logits or (self.value_head is not None and self.critic is None):
            hidden = run_trunk(self.model.base_model, inputs)[selected]
        options = LogprobOptions(self.temperature, batch.sampling_mask, self.trains_entropy)
        outputs = self._logprobs(hidden, batch.labels[selected], inputs, selected, options)
        if self.value_head is None or trains == "policy":
            return PolicyOutputs(outputs.logprobs, outputs.entropies, None)
        values = self.value_head(hidden) if self.critic is None else self._critic_values(inputs, selected)
        return PolicyOutputs(outputs.logprobs, outputs.entropies, values)

    @property
    def trunk_head(self) -> ValueHead | None:
        """The value head, if it reads the same hidden states as the policy's output head, unscaled (MiniCPM3's are)."""
        reads_same = self.critic is None and self.form is not None and self.form.input_scale == 1.0
        return self.value_head if reads_same else None

    def values(self, batch: ResponseBatch) -> Float[Tensor, " responses"]:
        """The values alone, of a critic with its own trunk."""
        return self._critic_values(pack_inputs(batch, self.kernel), _label_places(batch))

    def _critic_values(self, inputs: Inputs, selected: Int[Tensor, " responses"]) -> Float[Tensor, " responses"]:
        assert self.value_head is not None and self.critic is not None
        values: Tensor = self.value_head(run_trunk(self.critic, inputs)[selected])
        return values

    def _logprobs(
        self,
        hidden: Float[Tensor, "responses hidden"] | None,
        labels: Int[Tensor, " responses"],
        inputs: Inputs,
        selected: Int[Tensor, " responses"],
        options: LogprobOptions,
    ) -> TokenLogprobs:
        if self.whole_logits:
            return logits_logprobs(run_model(self.model, inputs)[selected], labels, options)
        assert hidden is not None
        return output_head(self.model).logprobs(hidden, labels, options)


def _label_places(batch: ResponseBatch) -> Int[Tensor, " responses"]:
    """The places that have labels."""
    return (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
