"""Which modules let a document see another: found by what changes when only another document does.

Two packs end with the same document. A module whose inputs at that document's tokens are the same in both, and whose
outputs there are not, leaks. The innermost one is taken, in the order of the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmtrain.models.paths.runs import ByRuns

TOLERANCE = 1e-4  # of the largest value at the document; a leak is off by a hundredth or more


class _Call(NamedTuple):
    """One call of a module: what of its inputs and outputs belongs to the last document."""

    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


Run = Callable[[Sequence[int]], object]
"""Lengths of documents -> a forward of a pack of such, of which the last is always the same."""


def leaking_class(model: nn.Module, run: Run, lengths: Sequence[int], others: Sequence[int]) -> type[nn.Module] | None:
    """The class of the first module that leaks between the documents of two packs; None: there is none.

    `lengths`, `others`: tokens of each document, the last the same in both.
    """
    assert lengths[-1] == others[-1] and sum(lengths) != sum(others)
    first, second = (_calls(model, run, each) for each in (lengths, others))
    if len(first) != len(second):
        return None
    for one, other in zip(first, second, strict=True):
        if not one.inputs or not one.outputs or len(one.inputs) != len(other.inputs):
            continue
        if _equal(one.inputs, other.inputs) and not _equal(one.outputs, other.outputs):
            return type(one.module)
    return None


def _calls(model: nn.Module, run: Run, lengths: Sequence[int]) -> list[_Call]:
    """The calls of all modules, in the order in which they end."""
    calls: list[_Call] = []
    total, last = sum(lengths), lengths[-1]

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_Call(module, _at_last((args, kwargs), total, last), _at_last(output, total, last)))

    inside = {each for module in model.modules() if isinstance(module, ByRuns) for each in module.modules()}
    inside -= {module for module in model.modules() if isinstance(module, ByRuns)}
    modules = [module for module in model.modules() if module not in inside]
    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    try:
        run(lengths)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _at_last(value: Any, total: int, last: int) -> list[Tensor]:
    """The part of each packed tensor that belongs to the last document."""
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in _at_last(each, total, last)]
    if isinstance(value, (tuple, list)):
        return [tensor for each in value for tensor in _at_last(each, total, last)]
    if not isinstance(value, Tensor) or value.ndim < 2:
        return []
    if value.is_complex():
        value = torch.view_as_real(value)
    if value.shape[0] == 1 and value.shape[1] == total:
        return [value[:, -last:].detach().float()]
    return [value[-last:].detach().float()] if value.shape[0] == total else []


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors are the same but for rounding."""
    if len(some) != len(others):
        return False
    return all(
        one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
        for one, other in zip(some, others, strict=True)
    )
