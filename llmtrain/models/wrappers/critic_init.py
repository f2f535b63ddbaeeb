"""A critic that starts as the reward model (Huang et al. 2024): its value at a response's end is then the score.

The head always comes from there. The trunk of a separate critic does too: all its weights if it has no adapter, those
of a reward adapter added in; or the adapter, if both use the same base.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.folders.reward import Classifier, require_one_score
from llmtrain.models.heads.score import SCORE
from llmtrain.models.wrappers.actor_critic import ValueHead
from llmtrain.models.wrappers.checks import require_score_of_last_token

FIX = "set policy.critic_init=zero, or train a reward model that fits"


@dataclass(frozen=True)
class CriticStart:
    """The reward model that a critic starts as."""

    path: str  # of the model's folder, or of its run
    weight: float  # of its reward in the sum of rewards
    key: str  # the config key and value that name it, for messages
    found: Classifier  # the model itself, which stays as it is


def start_critic(start: CriticStart, head: ValueHead, trunk: nn.Module | None) -> None:
    """Let a critic start as a reward model. Raises ValueError for one that does not fit."""
    model = require_one_score(start.found, start.path)
    require_score_of_last_token(model)
    start_as_reward(head, trunk, model, start.weight, start.key)


@torch.no_grad()
def start_as_reward(head: ValueHead, trunk: nn.Module | None, reward: PreTrainedModel, weight: float, key: str) -> None:
    """Set a critic to a reward model, times the weight of its reward.

    `trunk`: the critic's own; None: it shares the policy's, and only its head is set. `key`: for messages. Raises
    ValueError if the two do not fit.
    """
    scores = _head_weight(reward)
    if scores.shape != head.weight.shape:
        raise ValueError(
            f"{key}: the reward model has a hidden size of {scores.shape[1]}, the policy of {head.weight.shape[1]}: "
            f"{FIX}"
        )
    if trunk is not None:
        _start_trunk(trunk, reward.base_model, key)
    head.weight.copy_(weight * scores)
    head.bias.zero_()


def _head_weight(reward: PreTrainedModel) -> Tensor:
    head = reward.get_submodule(SCORE)
    if isinstance(head, ModulesToSaveWrapper):
        head = head.modules_to_save["default"]
    assert isinstance(head.weight, Tensor)
    return head.weight


def _start_trunk(trunk: nn.Module, theirs: nn.Module, where: str) -> None:
    has_adapter, is_adapter = (
        any(isinstance(module, BaseTunerLayer) for module in part.modules()) for part in (trunk, theirs)
    )
    if has_adapter and not is_adapter:
        raise ValueError(
            f"{where}: the critic is an adapter but the reward model was fully fine-tuned: train the reward model with "
            "the policy's adapter section, or set adapter.kind=none"
        )
    if has_adapter:
        scales, their_scales = _scales(trunk), _scales(theirs)
        if scales != their_scales:
            name = next(n for n in {**scales, **their_scales} if scales.get(n) != their_scales.get(n))
            raise ValueError(
                f"{where}: the adapter of {name} has scale {their_scales.get(name)} in the reward model and "
                f"{scales.get(name)} in the critic: give both stages one adapter section"
            )
    source: dict[str, Tensor] = dict(theirs.named_parameters()) if has_adapter else _plain_weights(theirs)
    adapted = {} if has_adapter else _adapted_layers(theirs)
    mine = dict(trunk.named_parameters())
    unlike = [
        n for n in sorted({*mine, *source}) if n not in mine or n not in source or mine[n].shape != source[n].shape
    ]
    if unlike:
        raise ValueError(f"{where}: {unlike[0]} differs between the reward model and the critic: {FIX}")
    for name, parameter in mine.items():
        layer, _, own = name.rpartition(".")
        value = _merged(adapted[layer], own) if layer in adapted else source[name]
        value = value.to(parameter.device)
        if parameter.requires_grad:
            parameter.copy_(value)
        elif not torch.equal(parameter, value.to(parameter.dtype)):
            raise ValueError(f"{where}: the reward model has another base, {name} differs: {FIX}")


def _scales(trunk: nn.Module) -> dict[str, float]:
    """The scale of each adapted layer's adapter."""
    return {name: module.scaling["default"] for name, module in trunk.named_modules() if isinstance(module, LoraLayer)}


def _plain_weights(trunk: nn.Module) -> dict[str, Tensor]:
    """A trunk's weights by their plain names, without its adapters."""
    return {
        name.replace(".base_layer", ""): parameter
        for name, parameter in trunk.named_parameters()
        if ".lora_" not in name
    }


def _adapted_layers(trunk: nn.Module) -> dict[str, BaseTunerLayer]:
    return {name: module for name, module in trunk.named_modules() if isinstance(module, BaseTunerLayer)}


def _merged(layer: BaseTunerLayer, name: str) -> Tensor:
    """A parameter of a layer with its adapters added in; the layer stays as it is."""
    merged: Any = copy.deepcopy(layer)  # a module, which its type does not say
    for part in merged.modules():  # adapters on several parameters of one layer are around each other
        if isinstance(part, BaseTunerLayer):
            part.merge()
    found: Tensor = merged.get_base_layer().get_parameter(name)
    return found
