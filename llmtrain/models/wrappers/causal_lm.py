"""A causal language model with its loss inside: hidden states -> cross-entropy at the trained positions only.

The logits of a microbatch are never whole: the head runs over chunks of trained tokens, and each chunk's
gradient is taken at once, so that nothing of size tokens x vocabulary outlives its chunk. The head is called
as a module, with its own parameters, so engines that shard parameters gather them as for any other module.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.models.attention import plan_segments
from llmtrain.models.wrappers.neftune import add_noise
from llmtrain.protocols import LossOptions, TokenLoss
from llmtrain.system.device import AttentionKernel

CHUNK_ELEMENTS = 2**20  # logits of a chunk: 4 MB in fp32 stay in a CPU's cache
CUDA_CHUNK_ELEMENTS = 2**27  # a GPU is busy enough
MIN_CHUNK_TOKENS = 128  # of a large vocabulary these are more, and yet faster: a product of fewer is slow


class LossHead(nn.Linear):
    """The output projection of a causal LM that can also give the loss instead of the logits."""

    def forward(  # type: ignore[override]
        self,
        hidden: Float[Tensor, "*batch hidden"],
        labels: Int[Tensor, " tokens"] | None = None,
        options: LossOptions = LossOptions(),
    ) -> Tensor | TokenLoss:
        """Logits without `labels`; with them, the summed loss of `hidden` (tokens, hidden) at every token."""
        if labels is None:
            return super().forward(hidden)
        return chunked_loss(hidden, self.weight, self.bias, labels, options)


class CausalLMLoss(nn.Module):
    """The one module that is trained: packed tokens in, summed losses out."""

    def __init__(self, model: PreTrainedModel, kernel: AttentionKernel, own_logits: bool) -> None:
        """`own_logits`: take the model's own logits, for heads that do more than project (softcaps, scales).

        `neftune_alpha`, once set, is the scale of the noise on the embeddings in training.
        """
        super().__init__()
        self.model = model
        self._no_split_modules = model._no_split_modules  # what FSDP shards layer by layer
        self.kernel: AttentionKernel = kernel
        self.own_logits = own_logits
        self.neftune_alpha: float | None = None
        if not own_logits:
            head = model.get_output_embeddings()
            assert is_projection(head), type(head)
            if type(head) is nn.Linear:
                head.__class__ = LossHead  # keeps the module, its parameters and their names

    def forward(self, batch: PackedTokens, options: LossOptions = LossOptions()) -> TokenLoss:
        """Losses summed over the batch's trained tokens; zero, but attached to every parameter, if there are none."""
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids[None],
            "position_ids": batch.position_ids[None],
            "segments": plan_segments(batch.segment_lengths, self.kernel, batch.input_ids.device),
            "use_cache": False,
        }
        if self.neftune_alpha is not None and self.training:
            embedded = self.model.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = add_noise(embedded, batch.segment_lengths, self.neftune_alpha)
        labels, selected = batch.labels, None
        if batch.num_trained < labels.numel():
            selected = (labels != IGNORE_INDEX).nonzero()[:, 0]
            labels = labels[selected]
        if self.own_logits:
            logits = self.model(**inputs).logits[0]
            return logits_loss(logits if selected is None else logits[selected], labels, options)
        hidden = self.model.base_model(**inputs).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        return head(hidden if selected is None else hidden[selected], labels, options)


def chunks(hidden: Float[Tensor, "tokens hidden"], weight: Float[Tensor, "vocab hidden"]) -> list[slice]:
    """The tokens of each chunk of logits."""
    elements = CUDA_CHUNK_ELEMENTS if hidden.device.type == "cuda" else CHUNK_ELEMENTS
    length = max(MIN_CHUNK_TOKENS, elements // weight.shape[0])
    return [slice(start, start + length) for start in range(0, hidden.shape[0], length)]


def is_projection(head: nn.Module | None) -> bool:
    """Whether an output head is one matrix, so that its loss can be taken in chunks."""
    return type(head) is nn.Linear or isinstance(head, LossHead)


def chunked_loss(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    labels: Int[Tensor, " tokens"],
    options: LossOptions,
    rows: Float[Tensor, "rows hidden"] | None = None,
    row_ids: Int[Tensor, " rows"] | None = None,
) -> TokenLoss:
    """The summed loss of `hidden` at every token; `rows` stand in for the rows `row_ids` of a weight without bias."""
    assert rows is None or bias is None
    needed = torch.is_grad_enabled()  # a Function is told that its inputs need gradients even where none are taken
    return TokenLoss(*_ChunkedCrossEntropy.apply(hidden, weight, bias, rows, row_ids, labels, options, needed))


def logits_loss(
    logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"], options: LossOptions
) -> TokenLoss:
    """The summed loss from logits, by autograd: the plain form of what the chunked one computes."""
    logits = logits.float()
    log_z = logits.logsumexp(-1)
    cross_entropy = log_z - logits.gather(-1, labels[:, None])[:, 0]
    smoothed = log_z - logits.mean(-1)
    objective = (1 - options.label_smoothing) * cross_entropy + options.label_smoothing * smoothed
    objective = objective + options.z_loss * log_z**2
    return TokenLoss(objective.sum(), cross_entropy.detach().sum())


def gradient_precision(hidden: Tensor) -> AbstractContextManager[object]:
    """Autocast as it is, but not in fp16: these products come before the loss scale, and would over- or underflow."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def add_product(
    total: Float[Tensor, "rows columns"], left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]
) -> None:
    """total += left @ right, in autocast's type, without a copy of the product where all are in one type."""
    in_place = left.dtype == right.dtype == total.dtype and not torch.is_autocast_enabled(total.device.type)
    if in_place:
        total.addmm_(left, right)
    else:
        total += left @ right


class _ChunkedCrossEntropy(torch.autograd.Function):
    """logits = hidden @ weight.T + bias, then `logits_loss`, with the gradients taken in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens hidden"],
        weight: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"] | None,
        rows: Float[Tensor, "rows hidden"] | None,
        row_ids: Int[Tensor, " rows"] | None,
        labels: Int[Tensor, " tokens"],
        options: LossOptions,
        needed: bool,
    ) -> tuple[Tensor, Tensor]:
        smoothing, z_loss = options.label_smoothing, options.z_loss
        need_hidden, need_weight, need_bias, need_rows = (needed and need for need in ctx.needs_input_grad[:4])
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        grad_rows = torch.zeros_like(rows, dtype=torch.float32) if need_rows and rows is not None else None
        objective = torch.zeros((), dtype=torch.float32, device=hidden.device)
        cross_entropy = torch.zeros_like(objective)
        for chunk in chunks(hidden, weight):
            targets = labels[chunk, None]
            logits = nn.functional.linear(hidden[chunk], weight, bias).float()  # (chunk, vocab)
            if rows is not None:
                logits[:, row_ids] = nn.functional.linear(hidden[chunk], rows.to(weight.dtype)).float()
            log_z = logits.logsumexp(-1, keepdim=True)
            losses = log_z - logits.gather(-1, targets)
            cross_entropy += losses.sum()
            if smoothing:
                losses = (1 - smoothing) * losses + smoothing * (log_z - logits.mean(-1, keepdim=True))
            objective += (losses + z_loss * log_z**2).sum()
            if not (need_hidden or need_weight or need_bias or need_rows):
                continue
            grad = logits.sub_(log_z).exp_()
            if z_loss:
                grad *= 1 + 2 * z_loss * log_z
            if smoothing:
                grad -= smoothing / weight.shape[0]
            grad.scatter_add_(-1, targets, torch.full_like(log_z, smoothing - 1))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            with gradient_precision(hidden):
                # Engines without autocast hold hidden states and weights in half precision.
                grad = grad.to(hidden.dtype) if hidden.dtype == torch.bfloat16 else grad
                if rows is not None:
                    grad_at_rows = grad[:, row_ids]
                    grad[:, row_ids] = 0  # what is left is the gradient at the rows that are the weight's own
                if grad_rows is not None:
                    grad_rows += grad_at_rows.t() @ hidden[chunk].to(grad.dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = grad @ weight.to(grad.dtype)
                    if rows is not None:
                        grad_hidden[chunk] += grad_at_rows @ rows.to(grad.dtype)
                if grad_weight is not None:
                    add_product(grad_weight, grad.t(), hidden[chunk].to(grad.dtype))
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias, grad_rows)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias, rows)]
        ctx.mark_non_differentiable(cross_entropy)
        return objective, cross_entropy

    @staticmethod
    def backward(ctx: Any, grad_objective: Tensor, _: Tensor) -> Any:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        grads = [None if grad is None else (grad * grad_objective).to(dtype) for grad, dtype in pairs]
        return *grads, None, None, None, None
