"""Muon for hidden matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from llmtrain.protocols import MatrixLayout

# Quintic Newton-Schulz coefficients of Jordan et al. 2024, "Muon: An optimizer for hidden layers".
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(Optimizer):
    """Muon for groups with `muon` set, AdamW for the others: one optimizer, one state per parameter.

        m = momentum * m + (1 - momentum) * g;  update = orthogonalise((1 - momentum) * g + momentum * m)

    The update of a matrix is scaled by sqrt(max(1, rows / columns)) (Jordan et al. 2024), its outputs by its inputs;
    `layout` of a group says how its parameters hold matrices. Those of equal shape are orthogonalised as one batch, in
    bf16 on GPUs and in fp32 on CPUs, which multiply bf16 several times slower.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, momentum: float
    ) -> None:
        # `fused` also makes Optimizer.load_state_dict put `step` on the parameter's device.
        defaults = {"lr": 0.0, "betas": betas, "eps": eps, "momentum": momentum, "muon": False}
        defaults["layout"] = MatrixLayout()
        super().__init__(groups, defaults | {"fused": has_fused(groups[0]["params"][0])})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            if group["muon"]:
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        by_shape = sorted(parameters, key=lambda parameter: tuple(parameter.shape))
        for _, same in groupby(by_shape, key=lambda parameter: parameter.shape):
            batch = list(same)
            grads = [_grad(parameter) for parameter in batch]
            buffers = [make_momentum(self, parameter) for parameter in batch]
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            nesterov = torch._foreach_lerp(grads, buffers, momentum)
            torch._foreach_mul_(batch, 1 - lr * group["weight_decay"])
            layouts = [[matrices(tensor, group["layout"]) for tensor in tensors] for tensors in (batch, nesterov)]
            for targets, sources in zip(*(zip(*each, strict=True) for each in layouts), strict=True):
                updates = orthogonalise(torch.cat([source.flatten(1, 2) for source in sources]))
                scale = max(1.0, updates.shape[1] / updates.shape[2]) ** 0.5
                added = [part.view(targets[0].shape) for part in updates.split(len(targets[0]))]
                torch._foreach_add_(list(targets), added, alpha=-lr * scale)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [make_moments(self, parameter, group) for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [_grad(parameter) for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def matrices(tensor: Tensor, layout: MatrixLayout) -> list[Float[Tensor, "stack groups rows columns"]]:
    """Views of the matrices that a parameter holds; groups times rows are the outputs of one, columns its inputs."""
    stack = tensor if layout.stacked else tensor.flatten(1)[None]
    if layout.taking_turns > 1:
        stack = tensor.unflatten(1, (-1, layout.taking_turns)).permute(2, 0, 1)
    stack = stack.mT if layout.transposed else stack
    parts = layout.parts or (stack.shape[1],)
    return list(stack.unflatten(1, (layout.groups, -1)).split(list(parts), dim=2))


def orthogonalise(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """The nearest semi-orthogonal matrices, roughly: singular values land in about [0.7, 1.2].

    Five Newton-Schulz steps on matrices scaled to spectral norm at most 1 (Jordan et al. 2024).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def make_momentum(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """Muon's state of a parameter, made if there is none."""
    state = optimizer.state[parameter]
    if not state:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    buffer: Tensor = state["momentum_buffer"]
    return buffer


def make_moments(optimizer: Optimizer, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """AdamW's state of a parameter, made if there is none; `fused` of the group says where its step count is."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        device = parameter.device if group["fused"] else None  # the fused step keeps its count there
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def has_fused(parameter: Tensor) -> bool:
    return parameter.device.type in ("cpu", "cuda", "mps")
