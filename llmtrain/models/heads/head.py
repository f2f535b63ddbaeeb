"""The output projection of a causal LM: hidden states -> their projection, or loss or logprobs of labels, in chunks.

Losses and logprobs go through the module's own call: an engine that shards parameters gathers them there.
"""

from __future__ import annotations

from typing import ClassVar, Self

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.heads.cross_entropy import chunked_loss
from llmtrain.models.heads.form import PLAIN, HeadForm
from llmtrain.models.heads.logprobs import LogprobOptions, TokenLogprobs, chunked_logprobs
from llmtrain.protocols import LossOptions, TokenLoss


class Head(nn.Linear):
    """An output projection that can also give losses and logprobs without holding all logits."""

    has_logprobs: ClassVar[bool] = True

    form: HeadForm = PLAIN  # what the model does to what the head projects

    @classmethod
    def of(cls, projection: nn.Linear) -> Self:
        """A head that has the parameters of another projection, the same tensors."""
        head = cls(projection.in_features, projection.out_features, projection.bias is not None, device="meta")
        head.weight, head.bias = projection.weight, projection.bias
        return head.train(projection.training)

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        labels: Int[Tensor, " tokens"],
        options: LossOptions,
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> TokenLoss:
        """The loss of `hidden` at every token, times its weight if there are any, summed."""
        loss = self(hidden, labels, options, weights)
        assert isinstance(loss, TokenLoss)
        return loss

    def logprobs(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        labels: Int[Tensor, " tokens"],
        options: LogprobOptions = LogprobOptions(),
    ) -> TokenLogprobs:
        """The logprob of each label after its hidden state, and the entropy of the distribution there."""
        logprobs = self(hidden, labels, options)
        assert isinstance(logprobs, TokenLogprobs)
        return logprobs

    def logits(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        """The model's logits."""
        projected = self(self.form.inputs(hidden))
        assert isinstance(projected, Tensor)
        return self.form.logits(projected)

    def forward(  # type: ignore[override]
        self,
        hidden: Float[Tensor, "*batch hidden"],
        labels: Int[Tensor, " tokens"] | None = None,
        options: LossOptions | LogprobOptions = LossOptions(),
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> Tensor | TokenLoss | TokenLogprobs:
        """The projection without `labels`; with them, what the type of `options` asks for."""
        if labels is None:
            return super().forward(hidden)
        if isinstance(options, LogprobOptions):
            return chunked_logprobs(hidden, self.weight, self.bias, labels, options, self.form)
        return chunked_loss(hidden, self.weight, self.bias, labels, options, weights=weights, form=self.form)


def is_projection(head: nn.Module | None) -> bool:
    """Whether an output head is one matrix, so that its loss can be taken in chunks."""
    return type(head) is nn.Linear or isinstance(head, Head)


def put_head(model: PreTrainedModel, form: HeadForm = PLAIN) -> None:
    """Let a model's output projection be a Head of this form, with the same parameters under the same names."""
    projection = model.get_output_embeddings()
    assert is_projection(projection), type(projection)
    if type(projection) is nn.Linear:
        (name,) = (name for name, module in model.named_modules() if module is projection)
        model.set_submodule(name, Head.of(projection))
    output_head(model).form = form


def output_head(model: PreTrainedModel) -> Head:
    """The output projection of a model that `put_head` has seen."""
    head = model.get_output_embeddings()
    assert isinstance(head, Head)
    return head
