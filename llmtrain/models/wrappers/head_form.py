"""The form of a model's output head, found by trial: what the model does to hidden states before their projection,
and to the projection after it.

The projection's own output is replaced by numbers of every size, and what the model makes of them is read off its
logits. A form that is found there must give the model's own logits on documents, and on a small copy the gradient of
every parameter too. What has none of the forms of `heads/form.py` keeps the model's own logits, of all tokens at once.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.heads.form import HeadForm
from llmtrain.models.heads.head import is_projection
from llmtrain.models.paths.choose import pseudo_random, same_outputs_and_gradients
from llmtrain.models.paths.small import small_copy
from llmtrain.models.paths.tried import tried
from llmtrain.models.trunk import Documents, Inputs, pack_inputs, run_model, run_trunk
from llmtrain.system.device import AttentionKernel

TOLERANCE = 1e-6  # of the largest logit: the same arithmetic on both sides
CURVE_TOLERANCE = 1e-5  # of each logit: a softcap is rounded in other places here
SMALLEST, LARGEST = -6.0, 6.0  # powers of ten of what the projection is replaced by
MAX_TOKENS = 23  # of the document that gradients are compared on


def head_form(
    model: PreTrainedModel,
    batch: Documents,
    logits: Float[Tensor, "tokens vocab"],
    kernel: AttentionKernel,
    max_seq_len: int,
) -> HeadForm | None:
    """The form of a model's head; None: it has none of those known here.

    `logits`: the model's own, of `batch`, on the path that the model is on, with this kernel.
    """
    head = model.get_output_embeddings()
    if head is None or not is_projection(head) or model.base_model is model:  # a trunk that transformers can't name
        return None
    length = batch.segment_lengths[0]
    document = Documents(batch.input_ids[:length], batch.position_ids[:length], (length,))
    form = _found(model, head, pack_inputs(document, kernel))
    if form is None:
        return None
    found = _logits(model, form, pack_inputs(batch, kernel)).float()
    if not float((found - logits).abs().max()) <= TOLERANCE * float(logits.abs().max()):
        return None
    return form if _trains_alike(model, form, max_seq_len) else None


def _found(model: PreTrainedModel, head: nn.Module, inputs: Inputs) -> HeadForm | None:
    """The form by what a model hands to its head in one call, and makes of what the head hands back."""
    projected: list[Tensor] = []  # hidden states as the head got them
    put: list[Tensor] = []  # and what the head gave in place of their projection

    def replace(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        sizes = torch.logspace(SMALLEST, LARGEST, output.numel(), dtype=torch.float64)
        sizes[1::2] *= -1
        projected.append(args[0])
        put.append(sizes.to(output.dtype))
        return put[-1].to(output.device, copy=True).view_as(output)

    handle = head.register_forward_hook(replace)
    try:
        bent = run_model(model, inputs)
    finally:
        handle.remove()
    hidden = run_trunk(model.base_model, inputs)
    if len(put) != 1 or put[0].numel() != bent.numel() or projected[0].numel() != hidden.numel():
        return None  # more than one call, logits that are cut or put together, layers in between
    input_scale = _ratio(hidden.flatten().cpu(), projected[0].flatten().cpu())
    curve = _curve(put[0], bent.flatten().cpu())
    return None if input_scale is None or curve is None else HeadForm(input_scale, *curve)


def _ratio(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> float | None:
    """The one number by which `before` becomes `after`; None: there is none."""
    counts = before.abs() >= 0.1 * before.abs().max()
    ratio = float((after.double() / before.double())[counts].median())
    is_right = (after - ratio * before).abs().max() <= TOLERANCE * after.abs().max()
    return ratio if bool(is_right) else None


def _curve(put: Float[Tensor, " n"], bent: Float[Tensor, " n"]) -> tuple[float, float | None] | None:
    """Scale and softcap that make of numbers, from the smallest to the largest, what a model did; None: none do."""
    few = max(1, len(put) // 4)  # where a softcap does not bend yet
    scale = float((bent[:few].double() / put[:few].double()).median())
    for softcap in (None, float(bent[-1].abs())):
        if softcap == 0.0:
            return None
        expected = HeadForm(scale=scale, softcap=softcap).logits(put.clone())
        if bool(((expected - bent).abs() <= CURVE_TOLERANCE * bent.abs()).all()):
            return scale, softcap
    return None


def _logits(model: PreTrainedModel, form: HeadForm, inputs: Inputs) -> Float[Tensor, "tokens vocab"]:
    head = model.get_output_embeddings()
    assert head is not None
    return form.logits(head(form.inputs(run_trunk(model.base_model, inputs))))


def _trains_alike(model: PreTrainedModel, form: HeadForm, max_seq_len: int) -> bool:
    """Whether a small copy gets the same logits and gradients through this form as from the model's own logits."""
    small = small_copy(model, max_seq_len, "eager")
    ids = pseudo_random(small, min(MAX_TOKENS, max_seq_len))
    inputs: Inputs = {"input_ids": ids[None], "use_cache": False}
    ours, own = partial(_logits, small, form, inputs), partial(run_model, small, inputs)
    return tried(lambda: same_outputs_and_gradients(small, ours, own)) is True
