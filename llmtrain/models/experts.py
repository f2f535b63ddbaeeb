"""Mixtures of experts: the loss that keeps them in balanced use, and a router that computes in fp32.

    balance = experts * sum over experts of (share of tokens sent to it) * (mean probability of it)

(Fedus et al. 2021, "Switch Transformers", equations 4 to 6), as the family's own `load_balancing_loss_func` has it,
over the real tokens of a microbatch. Families that balance by a bias have none.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

FUNCTION = "load_balancing_loss_func"
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""What the causal LMs of `transformers` call the weight of their balance loss."""


@dataclass(frozen=True)
class BalanceLoss:
    """The balance loss of one model, with the weight that its configuration gives it."""

    function: Callable[..., Any]
    num_experts: int
    num_chosen: int
    coefficient: float

    def of(self, router_logits: Sequence[Float[Tensor, "tokens experts"]]) -> Float[Tensor, ""]:
        """The loss, without the coefficient, of all layers of experts together: `num_chosen` if they are balanced."""
        loss: Tensor = self.function(tuple(router_logits), self.num_experts, self.num_chosen)
        return loss


def balance_loss(model: PreTrainedModel) -> BalanceLoss | None:
    """The balance loss of a causal LM; None: it has none, or a weight of 0."""
    function = vars(sys.modules[type(model).__module__]).get(FUNCTION)
    facts = vars(model)
    coefficient = next((facts[name] for name in COEFFICIENTS if name in facts), None)
    if function is None or not coefficient or not _recorded(model):
        return None
    if list(inspect.signature(function).parameters)[:3] != ["gate_logits", "num_experts", "top_k"]:
        return None
    return BalanceLoss(function, facts["num_experts"], facts["num_experts_per_tok"], float(coefficient))


def routers(model: nn.Module) -> list[nn.Module]:
    """The modules that choose experts and do nothing else."""
    return [module for module in _recorded(model) if _only_routes(module)]


def _recorded(model: nn.Module) -> list[nn.Module]:
    """The modules whose outputs `transformers` records as router logits, as the class of the model says."""
    recorders: list[OutputRecorder] = []
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            found = (module._can_record_outputs or {}).get("router_logits", [])
            recorders += found if isinstance(found, list) else [found]
    classes = tuple(recorder.target_class for recorder in recorders if isinstance(recorder, OutputRecorder))
    return [module for module in model.modules() if isinstance(module, classes)]


class RoutesInFp32(nn.Module):
    """What a router's class gets in front of it: no autocast, so that close scores are not rounded to ties."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The router's own outputs, of inputs in fp32."""
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        args = tuple(_in_fp32(value) for value in args)
        kwargs = {name: _in_fp32(value) for name, value in kwargs.items()}
        weights = {name: weight.float() for name, weight in self.named_parameters() if weight.dtype != torch.float32}
        with torch.autocast(first.device.type, enabled=False), _reparametrize_module(self, weights):
            return super().forward(*args, **kwargs)


def route_in_fp32(model: nn.Module) -> None:
    """Let the routers of a model compute in fp32, also under autocast and with weights in 16 bits."""
    for router in routers(model):
        if not isinstance(router, RoutesInFp32):
            cls: type = type(router)  # mypy takes type[Module] for unhashable
            router.__class__ = _subclass(cls)


@cache
def _subclass(cls: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (RoutesInFp32, cls), {"__module__": cls.__module__})


def _only_routes(router: nn.Module) -> bool:
    """Whether a module has no experts itself: some families record what the whole block of experts puts out."""
    return all(parameter.ndim <= 2 for parameter in router.parameters()) and not any(
        isinstance(module, nn.ModuleList) for module in router.modules()
    )


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
