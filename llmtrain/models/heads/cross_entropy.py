"""Hidden states -> cross-entropy and errors summed over tokens, never holding all logits.

    objective = (1 - s) (log Z - z[label]) + s (log Z - mean z) + zeta (log Z)^2,   z = W h + b,   log Z = log sum exp z

s is the label smoothing, zeta the z-loss; a head's form (`form.py`) may bend z, a token's loss may have a weight. An
error is a token that greedy decoding would not have chosen: of several most likely tokens it takes the first. The head
runs over chunks of tokens, and each chunk's gradient is taken at once, so nothing of size tokens x vocabulary outlives
its chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmtrain.models.heads.chunks import add_product, chunks, gradient_precision
from llmtrain.models.heads.form import PLAIN, HeadForm
from llmtrain.protocols import LossOptions, TokenLoss


def chunked_loss(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    labels: Int[Tensor, " tokens"],
    options: LossOptions,
    rows: Float[Tensor, "rows hidden"] | None = None,
    row_ids: Int[Tensor, " rows"] | None = None,
    weights: Float[Tensor, " tokens"] | None = None,
    form: HeadForm = PLAIN,
) -> TokenLoss:
    """The summed loss of `hidden` at every token, each times its weight, if there are any.

    `rows` replace the rows `row_ids` of a weight; a bias is frozen then.
    """
    assert rows is None or bias is None or not bias.requires_grad
    needed = torch.is_grad_enabled()  # ctx.needs_input_grad is True for weights also under no_grad
    inputs = form.inputs(hidden), weight, bias, rows, row_ids, labels, options, weights, form, needed
    return TokenLoss(*_ChunkedCrossEntropy.apply(*inputs))


def logits_loss(
    logits: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    options: LossOptions,
    weights: Float[Tensor, " tokens"] | None = None,
) -> TokenLoss:
    """The summed loss from logits, by autograd: the plain form of what the chunked one computes."""
    logits = logits.float()
    log_z = logits.logsumexp(-1)
    cross_entropy = log_z - logits.gather(-1, labels[:, None])[:, 0]
    smoothed = log_z - logits.mean(-1)
    objective = (1 - options.label_smoothing) * cross_entropy + options.label_smoothing * smoothed
    objective = objective + options.z_loss * log_z**2
    if weights is not None:
        objective, cross_entropy = objective * weights, cross_entropy * weights
    token_losses = cross_entropy.detach()
    return TokenLoss(objective.sum(), token_losses.sum(), _num_errors(logits, labels[:, None]), token_losses)


def _num_errors(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens 1"]) -> Float[Tensor, ""]:
    """How many targets are not the first of the largest logits."""
    if logits.device.type == "cpu":  # numpy's argmax is ten times as fast there: torch 2.13 takes one number at a time
        chosen = torch.from_numpy(logits.detach().numpy().argmax(-1, keepdims=True))
    else:
        chosen = logits.argmax(-1, keepdim=True)
    return (chosen != targets).sum().float()  # exact up to 2^24


def _gradient(
    logits: Float[Tensor, "tokens vocab"],
    log_z: Float[Tensor, "tokens 1"],
    targets: Int[Tensor, "tokens 1"],
    options: LossOptions,
) -> Float[Tensor, "tokens vocab"]:
    """d objective / d z = p (1 + 2 zeta log Z) - s / vocab - (1 - s) [is the label], written over the logits."""
    grad = logits.sub_(log_z).exp_()
    if options.z_loss:
        grad *= 1 + 2 * options.z_loss * log_z
    if options.label_smoothing:
        grad -= options.label_smoothing / grad.shape[-1]
    return grad.scatter_add_(-1, targets, torch.full_like(log_z, options.label_smoothing - 1))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """logits = form.logits(hidden @ weight.T + bias), then `logits_loss`; gradients are taken in the forward pass."""

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
        weights: Float[Tensor, " tokens"] | None,
        form: HeadForm,
        needed: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        smoothing, z_loss = options.label_smoothing, options.z_loss
        need_hidden, need_weight, need_bias, need_rows = (needed and need for need in ctx.needs_input_grad[:4])
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        grad_rows = torch.zeros_like(rows, dtype=torch.float32) if need_rows and rows is not None else None
        objective = torch.zeros((), dtype=torch.float32, device=hidden.device)
        cross_entropy, errors = torch.zeros_like(objective), torch.zeros_like(objective)
        token_losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        for chunk in chunks(hidden, weight):
            targets = labels[chunk, None]
            logits = nn.functional.linear(hidden[chunk], weight, bias).float()  # (chunk, vocab)
            if rows is not None:
                bias_at_rows = None if bias is None else bias[row_ids]
                logits[:, row_ids] = nn.functional.linear(hidden[chunk], rows.to(weight.dtype), bias_at_rows).float()
            logits = form.logits(logits)
            log_z = logits.logsumexp(-1, keepdim=True)
            losses = log_z - logits.gather(-1, targets)
            token_weights = None if weights is None else weights[chunk, None]
            token_losses[chunk] = (losses if token_weights is None else losses * token_weights)[:, 0]
            cross_entropy += token_losses[chunk].sum()
            errors += _num_errors(logits, targets)
            if smoothing:
                losses = (1 - smoothing) * losses + smoothing * (log_z - logits.mean(-1, keepdim=True))
            losses = losses + z_loss * log_z**2
            objective += (losses if token_weights is None else losses * token_weights).sum()
            if not (need_hidden or need_weight or need_bias or need_rows):
                continue
            slopes = form.slopes(logits)
            grad = _gradient(logits, log_z, targets, options)
            for factor in (token_weights, slopes):
                if factor is not None:
                    grad *= factor
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
        ctx.mark_non_differentiable(cross_entropy, errors, token_losses)
        return objective, cross_entropy, errors, token_losses

    @staticmethod
    def backward(ctx: Any, grad_objective: Tensor, *_: Tensor) -> Any:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        grads = [None if grad is None else (grad * grad_objective).to(dtype) for grad, dtype in pairs]
        return *grads, None, None, None, None, None, None
