"""Hidden states -> the logprob of each label and the entropy there, never holding all logits.

    logprob = log p[label],   entropy = -sum p log p,   log p = z - log sum exp z,   z = logits / temperature

log p is taken from z minus its maximum: entropy as `log sum exp z - sum p z` would lose, of logits far from zero, the
digits that both have in common.

A token that was drawn among some of the vocabulary only (top-p, top-k) has its logprob and entropy among the same:
the sums are over those, whatever the weights are by now. Chosen again under other weights, they could exclude the
sampled token, and its logprob would be minus infinity (DeepSeek-V3.2 2025, section 3.1, keeps them for that reason).

Chunks of logits are made in forward and again in backward, where the gradient of each token is known: in the same
precision, which autograd does not see to by itself. Where only the hidden states are trained (under an adapter), what a
token's logprob and entropy change by with its hidden state is taken in forward, and backward only scales it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmtrain.batch import SamplingMask
from llmtrain.models.heads.chunks import add_product, chunks, gradient_precision
from llmtrain.models.heads.form import PLAIN, HeadForm


class TokenLogprobs(NamedTuple):
    """Logprobs of tokens and entropies of their distributions, in nats, at the sampling temperature."""

    logprobs: Float[Tensor, " tokens"]
    entropies: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class LogprobOptions:
    """How logprobs are computed."""

    temperature: float = 1.0
    sampling_mask: SamplingMask | None = None
    trains_entropy: bool = True  # False: entropies have no gradient, which saves time


def chunked_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    labels: Int[Tensor, " tokens"],
    options: LogprobOptions,
    form: HeadForm = PLAIN,
) -> TokenLogprobs:
    """The logprob of each label after its hidden state, and the entropy there."""
    needed = torch.is_grad_enabled()  # ctx.needs_input_grad is True for weights also under no_grad
    return TokenLogprobs(*_ChunkedLogprobs.apply(form.inputs(hidden), weight, bias, labels, options, form, needed))


def logits_logprobs(
    logits: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    options: LogprobOptions = LogprobOptions(),
) -> TokenLogprobs:
    """The same from logits, by autograd: the plain form of what the chunked one computes."""
    scaled = logits.float() / options.temperature
    if options.sampling_mask is not None:
        scaled = options.sampling_mask.apply(scaled)
    log_probs = scaled.log_softmax(-1)
    return TokenLogprobs(log_probs.gather(-1, labels[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1))


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens hidden"],
        weight: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"] | None,
        labels: Int[Tensor, " tokens"],
        options: LogprobOptions,
        form: HeadForm,
        needed: bool,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        logprobs, entropies = (hidden.new_zeros(labels.shape, dtype=torch.float32) for _ in range(2))
        need_hidden, need_weight, need_bias = (needed and need for need in ctx.needs_input_grad[:3])
        slopes: list[Tensor | None] = [None, None]  # of logprobs and entropies along the hidden states
        if need_hidden and not need_weight and not need_bias:
            empty = partial(torch.empty_like, hidden, dtype=torch.float32)
            slopes = [empty(), empty() if options.trains_entropy else None]
        for chunk in chunks(hidden, weight):
            logits = _logits(hidden[chunk], weight, bias, form)
            bends = form.slopes(logits) if slopes[0] is not None else None
            log_probs = _log_probs(logits, options, chunk)
            logprobs[chunk] = log_probs.gather(-1, labels[chunk, None])[:, 0]
            probs = log_probs.exp()
            entropies[chunk] = torch.linalg.vecdot(probs, log_probs).neg_()
            if slopes[1] is not None:
                by_entropy = log_probs.add_(entropies[chunk, None]).mul_(probs)
                by_entropy = by_entropy if bends is None else by_entropy.mul_(bends)
                slopes[1][chunk] = _along_hidden(by_entropy, weight, hidden.dtype).div_(-options.temperature)
            if slopes[0] is not None:
                probs.scatter_add_(-1, labels[chunk, None], probs.new_full((len(probs), 1), -1.0))
                probs = probs if bends is None else probs.mul_(bends)
                slopes[0][chunk] = _along_hidden(probs, weight, hidden.dtype).div_(-options.temperature)
        if slopes[0] is None:
            ctx.save_for_backward(hidden, weight, bias, labels, entropies)
        else:
            ctx.save_for_backward(*slopes)
        ctx.options, ctx.form, ctx.has_slopes, ctx.dtype = options, form, slopes[0] is not None, hidden.dtype
        if not options.trains_entropy:
            ctx.mark_non_differentiable(entropies)
        kind = hidden.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        return logprobs, entropies

    @staticmethod
    @once_differentiable  # the slopes would count as constants
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> Any:
        if ctx.has_slopes:
            of_logprobs, of_entropies = ctx.saved_tensors
            grad_hidden = grad_logprobs[:, None] * of_logprobs
            if of_entropies is not None:
                grad_hidden.addcmul_(grad_entropies[:, None], of_entropies)
            return grad_hidden.to(ctx.dtype), None, None, None, None, None, None
        return _backward_through_logits(ctx, grad_logprobs, grad_entropies)


def _backward_through_logits(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> Any:
    hidden, weight, bias, labels, entropies = ctx.saved_tensors
    need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_hidden = torch.empty_like(hidden) if need_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
    with torch.autocast(*ctx.autocast):
        for chunk in chunks(hidden, weight):
            logits = _logits(hidden[chunk], weight, bias, ctx.form)
            bends = ctx.form.slopes(logits)
            log_probs = _log_probs(logits, ctx.options, chunk)
            grad = log_probs.exp()  # the probabilities
            # d entropy / d z_k = -p_k (log p_k + entropy);  d logprob / d z_k = [k is the label] - p_k
            if ctx.options.trains_entropy:
                inner = log_probs.add_(entropies[chunk, None]).mul_(grad_entropies[chunk, None])
                grad *= inner.add_(grad_logprobs[chunk, None]).neg_()
            else:
                grad *= -grad_logprobs[chunk, None]
            grad.scatter_add_(-1, labels[chunk, None], grad_logprobs[chunk, None])
            grad = grad if bends is None else grad.mul_(bends)
            grad = grad.div_(ctx.options.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = grad @ weight.to(grad.dtype)
            if grad_weight is not None:
                add_product(grad_weight, grad.t(), hidden[chunk])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
    weight_grad = None if grad_weight is None else grad_weight.to(weight.dtype)
    return grad_hidden, weight_grad, None if grad_bias is None else grad_bias.to(bias.dtype), None, None, None, None


def _along_hidden(
    of_logits: Float[Tensor, "tokens vocab"], weight: Float[Tensor, "vocab hidden"], dtype: torch.dtype
) -> Float[Tensor, "tokens hidden"]:
    """The slope along hidden states of this type, from that along logits: before fp16's loss scale, so not in fp16."""
    with gradient_precision(weight):
        narrow = of_logits.to(dtype) if dtype == torch.bfloat16 else of_logits
        return narrow @ weight.to(narrow.dtype)


def _logits(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    form: HeadForm,
) -> Float[Tensor, "tokens vocab"]:
    return form.logits(nn.functional.linear(hidden, weight, bias).float())


def _log_probs(
    logits: Float[Tensor, "tokens vocab"], options: LogprobOptions, chunk: slice
) -> Float[Tensor, "tokens vocab"]:
    """The logprobs of a chunk at the sampling temperature; the logits are written over."""
    logits = logits.div_(options.temperature)
    logits = logits if options.sampling_mask is None else options.sampling_mask.part(chunk).apply(logits)
    return logits.log_softmax(-1)
