"""Parameters that the loss of some documents does not reach, found before a step is trained.

    an indexer that only chooses keys (DeepSeek-V3.2), cross-attention without an encoder       reached by no document
    a compressor of every 128 tokens (DeepSeek-V4), an expert that no token chose               by some documents
    layers that training drops at random (OPT's layerdrop; Fan et al. 2019, "LayerDrop")       at some times

Processes that average gradients wait for that of every parameter, and DeepSpeed takes them in the order in which they
come. So each of these joins the graph at the input of a module around it that always runs, with a gradient of zero:
all processes have it then, once the module's backward is over. A model without such parameters is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from transformers import PreTrainedModel

from llmtrain.models.paths.small import noise_of
from llmtrain.models.paths.tried import Fault, tried

ALWAYS = ((1,), (5, 3, 8, 8))  # tokens of documents that any run may have: one token chooses the fewest experts


Compute = Callable[[Sequence[int]], Tensor]
"""Lengths of documents -> what a loss is computed from, on such documents."""


class Meeting(NamedTuple):
    """A parameter, and where it can join the graph."""

    name: str
    parameter: nn.Parameter
    owner: nn.Module  # under whose name engines put others in its place
    around: nn.Module  # a module around it that always runs, on hidden states

    @property
    def present(self) -> Tensor:
        """The parameter as its module has it now."""
        return self.owner.get_parameter(self.name.rpartition(".")[2])


@dataclass(frozen=True)
class Unreached:
    """The trained parameters of a model that not every document reaches."""

    by_any: tuple[Meeting, ...] = ()  # those that no document reaches
    by_some: tuple[Meeting, ...] = ()  # those that some documents reach, and others may not

    @property
    def ids(self) -> frozenset[int]:
        """Of the parameters that no document reaches."""
        return frozenset(id(meeting.parameter) for meeting in self.by_any)

    @property
    def line(self) -> str:
        """One line for the log; empty if every document reaches all."""
        found = [(self.by_any, "reached by no document"), (self.by_some, "not reached by every document")]
        return "; ".join(f"{len(group)} parameters are {how}, as {group[0].name}" for group, how in found if group)


def dropped_at_random(model: PreTrainedModel) -> tuple[str, ...]:
    """What the names of parameters begin with whose layers training drops at random; empty for most models."""
    if not any(name.endswith("layerdrop") for name in noise_of(model.config.get_text_config())):
        return ()
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))


def find_unreached(
    model: nn.Module, embedding: nn.Module, compute: Compute, max_seq_len: int, dropped: tuple[str, ...] = ()
) -> Unreached:
    """The trained parameters that not every document reaches, and where they can join the graph.

    `compute` calls `model`, or a part of it, which calls `embedding` first. `max_seq_len`: tokens of the longest
    document, which reaches what any does. `dropped`: of the names of parameters that no look shows to be left out.
    Raises ValueError if no document reaches any: such a run would train nothing.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        return Unreached()
    looks = [_look(model, trained, compute, lengths) for lengths in ALWAYS]
    missing = trained.keys() - set.intersection(*(look.reached for look in looks))
    if not missing and not any(name.startswith(dropped) for name in trained):
        return Unreached()
    longest = _longest(model, trained, compute, max_seq_len)
    chosen = (*_chosen(model, looks), *dropped)
    always = {name for name in set.intersection(*(look.entered for look in looks)) if not name.startswith(chosen)}

    def meeting(name: str) -> Meeting:
        owner = name.rpartition(".")[0]
        around = next((model.get_submodule(each) for each in _around(owner) if each in always), embedding)
        return Meeting(name, trained[name], model.get_submodule(owner), around)

    by_some = [name for name in trained if name.startswith(chosen) or name in missing & longest.reached]
    by_any = [name for name in trained if name in missing.difference(by_some)]
    if len(by_any) == len(trained):
        raise ValueError(
            f"adapter.target: the model reads none of these layers in a way that trains them ({by_any[0]} and all "
            "others get no gradient), so nothing would be trained: name other layers"
        )
    return Unreached(*(tuple(meeting(name) for name in names) for names in (by_any, by_some)))


def join(meetings: Sequence[Meeting], embedding: nn.Module) -> None:
    """Let parameters join the graph in each forward from now on, with a gradient of zero."""
    at: dict[nn.Module, list[Meeting]] = {}
    for meeting in meetings:
        at.setdefault(meeting.around, []).append(meeting)
    for module, members in at.items():
        zero = Zero(tuple(members))
        if module is embedding:
            module.register_forward_hook(lambda _, __, output, zero=zero: output + zero(output))
        else:
            module.register_forward_pre_hook(AtInput(zero), with_kwargs=True)


@dataclass(frozen=True)
class Zero:
    """Zero that parameters have a part in."""

    members: tuple[Meeting, ...]

    def __call__(self, beside: Tensor) -> Tensor:
        """In the type of another tensor; one parameter after the other, so that their gradients come in this order."""
        zero = beside.new_zeros(())
        for member in self.members if torch.is_grad_enabled() else ():
            zero = _Zero.apply(zero, member.present)
        return zero


@dataclass(frozen=True)
class AtInput:
    """A hook before a module's forward: something is added to its hidden states."""

    addend: Callable[[Tensor], Tensor]

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        for place, value in enumerate(args):
            if _is_hidden(value):
                return (*args[:place], value + self.addend(value), *args[place + 1 :]), kwargs
        name = next((name for name, value in kwargs.items() if _is_hidden(value)), None)
        return args, kwargs if name is None else {**kwargs, name: kwargs[name] + self.addend(kwargs[name])}


def _is_hidden(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Zero(torch.autograd.Function):
    """A zero as it is; its gradient goes on, and the parameter's is zero, which takes no memory until it is kept."""

    @staticmethod
    def forward(ctx: Any, zero: Tensor, parameter: Tensor) -> Tensor:
        ctx.save_for_backward(parameter)
        return zero.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (parameter,) = ctx.saved_tensors
        return gradient, parameter.new_zeros(()).expand(parameter.shape)


class _Look(NamedTuple):
    """What is in the graph of some outputs, by name; not the graph, which holds the activations."""

    reached: set[str]  # parameters
    entered: set[str]  # modules, by their hidden states


def _longest(model: nn.Module, trained: Mapping[str, nn.Parameter], compute: Compute, max_seq_len: int) -> _Look:
    """The look at one long document; at nothing for a model that has no positions for it, whatever it says."""
    found = tried(lambda: _look(model, trained, compute, [max_seq_len]))
    return _Look(set(), set()) if isinstance(found, Fault) else found


def _look(model: nn.Module, trained: Mapping[str, nn.Parameter], compute: Compute, lengths: Sequence[int]) -> _Look:
    entries: dict[str, Any] = {}  # module -> a node of the graph, if its hidden states are in it

    def entering(name: str) -> Callable[[Tensor], Tensor]:
        def zero(beside: Tensor) -> Tensor:
            mark = beside.new_zeros((), requires_grad=True)
            entries[name] = get_gradient_edge(mark).node
            return mark

        return zero

    hooks = [
        module.register_forward_pre_hook(AtInput(entering(name)), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:  # nothing runs backward, so activations are not kept
        with torch.enable_grad(), saved_tensors_hooks(_forget, _forgotten):
            nodes = _nodes(compute(lengths).grad_fn)
    finally:
        for hook in hooks:
            hook.remove()
    reached = {name for name, parameter in trained.items() if get_gradient_edge(parameter).node in nodes}
    return _Look(reached, {name for name, node in entries.items() if node in nodes})


def _forget(_: Tensor) -> None:
    """Keep nothing of what backward would take."""


def _forgotten(_: None) -> Tensor:
    raise AssertionError("no look runs backward")


def _nodes(last: Any) -> set[Any]:
    """All nodes that backward visits from one on."""
    found, waiting = {last}, [last]
    while waiting:
        new = {node for node, _ in waiting.pop().next_functions if node is not None} - found
        found |= new
        waiting += new
    return found


def _chosen(model: nn.Module, looks: Sequence[_Look]) -> tuple[str, ...]:
    """What the names of parameters begin with that are of a list of modules of which documents choose some to run.

    Those that all documents of a look ran are not surer than the others.
    """
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    return tuple(
        f"{name}."
        for name, module in lists.items()
        for look in looks
        if len({f"{name}.{item}" in look.entered for item, _ in module.named_children()}) > 1
    )


def _around(name: str) -> Iterator[str]:
    """A module and those that it is in: `a.b`, `a` and the whole, which has no name."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
