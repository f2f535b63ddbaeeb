"""Modules that know nothing of packs, run per group of documents inside a packed forward.

A recurrent mixer or a short convolution carries one document into the next, and RoPE whose frequencies depend on the
length takes that of the longest. Such a module gets each group's documents as the rows of a batch, (rows, length,
...), and its outputs go back to the places of their tokens. All else of the model stays packed.

A module keeps its place, name, parameters and children; only its class becomes a subclass that does this.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from llmtrain.models.attention import Segments
from llmtrain.models.paths.groups import Group, Grouping, Groups, group_documents

Classes = Mapping[type[nn.Module], Grouping]
"""Class of the modules that run per group -> how documents are grouped for them."""


class Bounds:
    """The documents of a model's forward under way; activations that backward recomputes read them again."""

    def __init__(self) -> None:
        self.segments: Segments | None = None  # None: the model runs on whole rows
        self.depth = 0  # of forwards under way: a model calls its trunk
        self._groups: dict[Grouping, Groups] = {}

    def enter(self, segments: Segments | None) -> None:
        """Enter a forward; the outermost one sets the bounds."""
        if self.depth == 0:
            self.segments, self._groups = segments, {}
        self.depth += 1

    def leave(self) -> None:
        """Leave a forward."""
        self.depth -= 1

    def groups(self, grouping: Grouping, device: Any) -> Groups:
        """How the documents are grouped, found once per forward."""
        assert self.segments is not None
        if grouping not in self._groups:
            lengths = [run.length for run in self.segments.runs for _ in range(run.num_segments)]
            self._groups[grouping] = group_documents(lengths, grouping, device)
        return self._groups[grouping]


class EnterForward:
    """A hook before a model's forward: it notes the bounds, and drops arguments that the model does not take."""

    def __init__(self, bounds: Bounds, forward: Callable[..., Any]) -> None:
        self.bounds = bounds
        parameters = inspect.signature(forward).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.known = None if takes_any else frozenset(parameter.name for parameter in parameters)

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self.bounds.enter(kwargs.get("segments"))
        if self.known is not None:
            dropped = ("segments", "position_ids")
            kwargs = {name: value for name, value in kwargs.items() if name in self.known or name not in dropped}
        return args, kwargs


@dataclass
class LeaveForward:
    """A hook after a model's forward, also after one that raised."""

    bounds: Bounds

    def __call__(self, *_: Any) -> None:
        self.bounds.leave()


class ByRuns(nn.Module):
    """What a module's class gets in front of it, to run per group of documents."""

    bounds: Bounds
    grouping: Grouping

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own outputs, of documents that do not see each other."""
        tensors = [value for value in _leaves((args, kwargs)) if isinstance(value, Tensor)]
        if self.bounds.segments is None or not tensors:
            return super().forward(*args, **kwargs)
        groups = self.bounds.groups(self.grouping, tensors[0].device)
        if not any(_is_packed(tensor, groups) for tensor in tensors):
            return super().forward(*args, **kwargs)
        outputs = []
        for group in groups.groups:
            inputs, named = _mapped((args, kwargs), partial(_rows, group=group, groups=groups))
            outputs.append(super().forward(*inputs, **named))
        return _joined(outputs, groups)


def run_by_groups(model: nn.Module, trunk: nn.Module, classes: Classes) -> None:
    """Let the modules of these classes run per group of documents, in place; `trunk` is the model or a part of it."""
    if not classes:
        return
    bounds = next((module.bounds for module in trunk.modules() if isinstance(module, ByRuns)), None)
    if bounds is None:
        bounds = Bounds()
        for each in {id(model): model, id(trunk): trunk}.values():
            each.register_forward_pre_hook(EnterForward(bounds, each.forward), with_kwargs=True)
            each.register_forward_hook(LeaveForward(bounds), always_call=True)
    for module in trunk.modules():
        cls = type(module).__mro__[2] if isinstance(module, ByRuns) else type(module)
        if cls in classes:
            module.__class__ = _subclass(cls)
            assert isinstance(module, ByRuns)
            module.bounds, module.grouping = bounds, classes[cls]


@cache
def _subclass(cls: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (ByRuns, cls), {"__module__": cls.__module__})


def _is_packed(tensor: Tensor, groups: Groups) -> bool:
    return tensor.ndim >= 2 and tensor.shape[0] == 1 and tensor.shape[1] == groups.num_tokens


def _rows(value: Any, group: Group, groups: Groups) -> Any:
    """(1, tokens, ...) -> (rows, length, ...) of a group; anything else as it is."""
    if not isinstance(value, Tensor) or not _is_packed(value, groups):
        return value
    return value[0].index_select(0, group.places).unflatten(0, (group.num_rows, group.length))


def _joined(outputs: Sequence[Any], groups: Groups) -> Any:
    """The outputs of all groups as one, in the order of the pack."""
    first = outputs[0]
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(parts, groups) for parts in zip(*outputs, strict=True))
    shapes = [(group.num_rows, group.length) for group in groups.groups]
    if isinstance(first, Tensor) and tuple(first.shape[:2]) == shapes[0]:
        return groups.joined(outputs)[None]
    if isinstance(first, Tensor) and first.ndim and first.shape[0] == shapes[0][0] * shapes[0][1]:
        return groups.joined([part.unflatten(0, shape) for part, shape in zip(outputs, shapes, strict=True)])
    return first


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    if isinstance(value, (tuple, list)):
        return [leaf for each in value for leaf in _leaves(each)]
    return [value]


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Tuples, lists and dicts with each value in them changed."""
    if type(value) is dict:
        return {name: _mapped(each, change) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(each, change) for each in value)
    return change(value)
