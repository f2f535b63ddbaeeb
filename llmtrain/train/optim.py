"""Which optimizer trains which parameters, its state, and the L1 step after its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from llmtrain.config.sections import OptimConfig
from llmtrain.protocols import MatrixLayout, ParamKind
from llmtrain.train.muon import Muon, has_fused, make_moments, make_momentum

NO_LAYOUTS: Mapping[nn.Parameter, MatrixLayout] = MappingProxyType({})
"""Every parameter is one matrix, (out, in)."""

OPTIMIZER_BYTES = {"adamw": 8, "muon": 4, "adamw8bit": 2, "paged_adamw8bit": 2}
"""State per trained weight: two fp32 moments, one, or two of a byte each."""


def param_groups(
    parameters: Mapping[ParamKind, Sequence[nn.Parameter]],
    config: OptimConfig,
    critic_lr: float | None = None,
    layouts: Mapping[nn.Parameter, MatrixLayout] = NO_LAYOUTS,
) -> list[dict[str, Any]]:
    """One parameter group per role: hidden matrices and an untied head are decayed, the others are not.

    With Muon the hidden matrices get `muon_lr`, the rest `lr` with AdamW; `layouts` are Muon's, a group for each. A
    critic gets `critic_lr`, if it is given.
    """
    groups: list[dict[str, Any]] = []
    for role, members in parameters.items():
        muon, decayed = role == "hidden" and config.name == "muon", role in ("hidden", "head")
        lr, weight_decay = config.muon_lr if muon else config.lr, config.weight_decay if decayed else 0.0
        if role == "critic" and critic_lr is not None:
            lr = critic_lr
        settings = {"lr": lr, "peak_lr": lr, "weight_decay": weight_decay, "decayed": decayed, "muon": muon}
        by_layout: dict[MatrixLayout, list[nn.Parameter]] = {}
        for member in members:
            by_layout.setdefault(layouts.get(member, MatrixLayout()), []).append(member)
        groups += [{"params": same, "layout": layout, **settings} for layout, same in by_layout.items()]
    return groups


def make_optimizer(
    parameters: Mapping[ParamKind, Sequence[nn.Parameter]],
    config: OptimConfig,
    critic_lr: float | None = None,
    layouts: Mapping[nn.Parameter, MatrixLayout] = NO_LAYOUTS,
) -> Optimizer:
    """The configured optimizer over `param_groups`; AdamW is torch's fused one if the device has it.

    Raises ValueError if an 8-bit optimizer is asked for and bitsandbytes is not installed.
    """
    groups = param_groups(parameters, config, critic_lr, layouts)
    betas = (config.beta1, config.beta2)
    if config.name in ("adamw8bit", "paged_adamw8bit"):
        try:
            from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
        except ImportError:
            raise ValueError(f"optim.name={config.name} needs bitsandbytes: pip install bitsandbytes") from None
        kind = AdamW8bit if config.name == "adamw8bit" else PagedAdamW8bit
        eight_bit: Optimizer = kind(groups, betas=betas, eps=config.eps)
        return eight_bit
    if config.name == "muon":
        return Muon(groups, betas=betas, eps=config.eps, momentum=config.momentum)
    return torch.optim.AdamW(groups, betas=betas, eps=config.eps, fused=has_fused(groups[0]["params"][0]))


def make_state(optimizer: Optimizer) -> None:
    """Make the state of every parameter, zeros, as the first step would of those with a gradient."""
    is_ours = isinstance(optimizer, torch.optim.AdamW | Muon)
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if not is_ours:
                optimizer.init_state(group, parameter, number, place)  # type: ignore[attr-defined]  # bitsandbytes'
            elif group.get("muon"):
                make_momentum(optimizer, parameter)
            else:
                make_moments(optimizer, parameter, group)


@torch.no_grad()
def shrink_l1(optimizer: Optimizer, l1: float) -> None:
    """One proximal step of l1 * |w| on the decayed groups (Parikh and Boyd 2014, section 6.5.2).

    w = sign(w) * max(|w| - lr * l1, 0)
    """
    for group in optimizer.param_groups if l1 else ():
        if group["decayed"]:
            for parameter in group["params"]:
                parameter.copy_(nn.functional.softshrink(parameter, group["lr"] * l1))
