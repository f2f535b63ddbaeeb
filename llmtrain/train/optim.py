"""AdamW and Muon over named parameter groups, and what acts on weights after a step: L1, EMA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from llmtrain.config.sections import OptimConfig
from llmtrain.protocols import ParamKind

OPTIMIZER_BYTES = {"adamw": 8, "muon": 4, "adamw8bit": 2, "paged_adamw8bit": 2}
"""The state of each trained weight: two fp32 moments, one, or two of a byte."""

# Quintic Newton-Schulz coefficients of Jordan et al. 2024, "Muon: An optimizer for hidden layers".
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def param_groups(
    parameters: Mapping[ParamKind, Sequence[nn.Parameter]], config: OptimConfig, critic_lr: float | None = None
) -> list[dict[str, Any]]:
    """One parameter group a role: hidden matrices and an untied head are decayed, the others are not.

    With Muon the hidden matrices get `muon_lr`; the rest stays with AdamW and `lr`, a critic with its own.
    """
    groups = []
    for role, members in parameters.items():
        muon, decayed = role == "hidden" and config.name == "muon", role in ("hidden", "head")
        lr, weight_decay = config.muon_lr if muon else config.lr, config.weight_decay if decayed else 0.0
        if role == "critic" and critic_lr is not None:
            lr = critic_lr
        group = {"params": list(members), "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}
        groups.append(group | {"decayed": decayed, "muon": muon})
    return [group for group in groups if group["params"]]


def make_optimizer(
    parameters: Mapping[ParamKind, Sequence[nn.Parameter]], config: OptimConfig, critic_lr: float | None = None
) -> Optimizer:
    """The configured optimizer over `param_groups`; AdamW is torch's fused one where the device has it.

    Raises ValueError where an 8-bit optimizer is asked for and bitsandbytes is not installed.
    """
    groups = param_groups(parameters, config, critic_lr)
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
    return torch.optim.AdamW(groups, betas=betas, eps=config.eps, fused=_has_fused(groups[0]["params"][0]))


def make_state(optimizer: Optimizer) -> None:
    """Make what AdamW or Muon remember of each parameter, zero, as their first step would; others make their own."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.AdamW | Muon) else ():
        for parameter in group["params"]:
            if group.get("muon"):
                _momentum(optimizer, parameter)
            else:
                _moments(optimizer, parameter, group)


def _momentum(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """Muon's state of a parameter."""
    state = optimizer.state[parameter]
    if not state:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    buffer: Tensor = state["momentum_buffer"]
    return buffer


def _moments(optimizer: Optimizer, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """AdamW's state of a parameter."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        device = parameter.device if group["fused"] else None  # the fused step counts where the parameter lies
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _has_fused(parameter: Tensor) -> bool:
    return parameter.device.type in ("cpu", "cuda", "mps")


class Muon(Optimizer):
    """Muon for groups with `muon` set, AdamW for the others: one optimizer, one state per parameter.

        m = momentum * m + (1 - momentum) * g;  update = orthogonalise((1 - momentum) * g + momentum * m)

    The update is scaled by sqrt(max(1, rows / columns)) (Jordan et al. 2024). Matrices of equal shape are
    orthogonalised as one batch, in bf16 on GPUs and in fp32 on CPUs, which multiply bf16 several times slower.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, momentum: float
    ) -> None:
        # `fused` also tells Optimizer.load_state_dict to put `step` on the parameter's device.
        defaults = {"lr": 0.0, "betas": betas, "eps": eps, "momentum": momentum, "muon": False}
        super().__init__(groups, defaults | {"fused": _has_fused(groups[0]["params"][0])})

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
        for shape, same in groupby(by_shape, key=lambda parameter: parameter.shape):
            batch = list(same)
            grads = [_grad(parameter) for parameter in batch]
            buffers = [_momentum(self, parameter) for parameter in batch]
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            nesterov = torch._foreach_lerp(grads, buffers, momentum)
            updates = orthogonalise(torch.stack(nesterov).flatten(2))
            torch._foreach_mul_(batch, 1 - lr * group["weight_decay"])
            scale = max(1.0, shape[0] / shape[1:].numel()) ** 0.5
            torch._foreach_add_(batch, [update.view(shape) for update in updates], alpha=-lr * scale)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [_moments(self, parameter, group) for parameter in parameters]
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


@torch.no_grad()
def shrink_l1(optimizer: Optimizer, l1: float) -> None:
    """One proximal step of l1 * |w| on the decayed groups (Parikh and Boyd 2014, section 6.5.2).

    w = sign(w) * max(|w| - lr * l1, 0)
    """
    for group in optimizer.param_groups:
        if group["decayed"]:
            for parameter in group["params"]:
                parameter.copy_(nn.functional.softshrink(parameter, group["lr"] * l1))


class Ema:
    """Exponential moving average of trainable weights, in fp32: average = decay * average + (1 - decay) * weight.

    Early on the decay is min(decay, (1 + step) / (10 + step)), so the average forgets the initial weights
    (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after `step` (from 1) into the average."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        current = [parameter.float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average for its weights within this context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights with the average; a second call undoes it exactly."""
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name] = kept.float()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved average. Raises KeyError where a parameter is missing."""
        for name, average in self.average.items():
            average.copy_(tensors[name])
