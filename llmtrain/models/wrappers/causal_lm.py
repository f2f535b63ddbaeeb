"""A causal language model with its loss inside: packed tokens -> cross-entropy at the trained positions only.

The head is called as a module, with its own parameters, so engines that shard parameters gather them as for any
other module.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.models.experts import balance_loss
from llmtrain.models.heads.cross_entropy import logits_loss
from llmtrain.models.heads.form import PLAIN, HeadForm
from llmtrain.models.heads.head import output_head, put_head
from llmtrain.models.param_kinds import parameters_by_kind
from llmtrain.models.paths.path import Path
from llmtrain.models.trunk import Inputs, layer_classes, pack_inputs, run_model, run_routed, run_trunk
from llmtrain.models.unreached import Unreached
from llmtrain.models.wrappers.neftune import noisy_embeddings
from llmtrain.protocols import Balance, LossOptions, ParamKind, TokenLoss, TrainedModule
from llmtrain.system.device import AttentionKernel


class CausalLMLoss(TrainedModule):
    """The one module that is trained: packed tokens in, summed losses out."""

    def __init__(
        self,
        model: PreTrainedModel,
        kernel: AttentionKernel,
        form: HeadForm | None = PLAIN,
        path: Path | None = None,
    ) -> None:
        """`form`: of the model's head; None: it has none of those known here, so the model's own logits are taken.

        `path`: that the model is on, and copies of it are to take; None: packs with `kernel`.
        `neftune_alpha`, once set, is the scale of the noise on the embeddings in training.
        """
        super().__init__()
        self.model = model
        self._no_split_modules = layer_classes(model)  # what FSDP shards layer by layer
        self.kernel: AttentionKernel = kernel
        self.form = form
        self.path = path or Path(kernel)
        self.unreached = Unreached()
        self.neftune_alpha: float | None = None
        self.balance = balance_loss(model)
        if form is not None:
            put_head(model, form)

    @property
    def whole_logits(self) -> bool:
        """Whether the logits of all tokens are in memory at once."""
        return self.form is None

    def trunks(self) -> list[PreTrainedModel]:
        return [self.model]

    def parameters_by_kind(self) -> dict[ParamKind, list[nn.Parameter]]:
        return parameters_by_kind(self.model, self.unreached.ids)

    def facts(self) -> dict[str, str | bool]:
        return {
            "attention": self.kernel,
            "whole_logits": self.whole_logits,
            "path": self.path.line,
            "unreached": self.unreached.line,
        }

    def forward(self, batch: PackedTokens, options: LossOptions = LossOptions()) -> TokenLoss:
        """Losses summed over the batch's trained tokens by their weights; zero, but attached to every parameter, if
        there are none."""
        inputs = pack_inputs(batch, self.kernel)
        alpha = self.neftune_alpha if self.training else None
        labels, weights, selected = batch.labels, batch.label_weights, None
        if batch.num_trained < labels.numel():
            selected = (labels != IGNORE_INDEX).nonzero()[:, 0]
            labels, weights = labels[selected], None if weights is None else weights[selected]
        with noisy_embeddings(self.model, inputs, batch.segment_lengths, alpha):
            outputs, balance = self._outputs(inputs)
        outputs = outputs if selected is None else outputs[selected]
        if self.whole_logits:
            return logits_loss(outputs, labels, options, weights)._replace(balance=balance)
        return output_head(self.model).loss(outputs, labels, options, weights)._replace(balance=balance)

    def _outputs(self, inputs: Inputs) -> tuple[Float[Tensor, "tokens outputs"], Balance | None]:
        """What the loss is taken of, logits or hidden states, and in training how evenly the experts were used."""
        if self.balance is not None and self.training:
            outputs, router_logits = run_routed(self.model if self.whole_logits else self.model.base_model, inputs)
            return outputs, Balance(self.balance.of(router_logits), self.balance.coefficient)
        run = run_model(self.model, inputs) if self.whole_logits else run_trunk(self.model.base_model, inputs)
        return run, None
