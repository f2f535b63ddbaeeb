"""Whether an adapter that is saved loads again as it was, tried at the start on a small copy of the model.

peft renames the weights of adapters on mixtures of experts as it loads them. For some architectures that loses those
of layers beside the experts, without a word: such a run would train what nobody can load. An adapter on the experts
themselves depends on how the model calls them: there the gradients and the merged model are tried too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Set
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import expected_warnings, lora_config
from llmtrain.models.adapters.renamed import put_adapter
from llmtrain.models.adapters.targets import last_parts, shown
from llmtrain.models.paths.choose import OUTPUT_TOLERANCE, pseudo_random
from llmtrain.models.paths.small import made_from, small_copy
from llmtrain.models.paths.tried import Fault, tried

TRIED_SEQ_LEN = 64
B_STD = 0.02  # large enough to count beside the weights, small enough to change few choices of experts
_RIGHT: set[Any] = set()  # models and adapters that this process has tried


def require_loading(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Raise ValueError for an adapter of which peft would load a part only, or that peft computes wrongly.

    `model`: without it. What cannot be tried on a small copy, such as an adapter of layers that the copy lacks, passes.
    """
    key = (made_from(model), config.model_dump_json())
    if key in _RIGHT:
        return
    trial = tried(lambda: _loaded_again(model, config))
    if isinstance(trial, Fault):
        return
    saved, loaded, ids = trial
    stacks = {name for name, module in saved.named_modules() if isinstance(module, ParamWrapper)}
    if lost := _lost(saved, loaded):
        where = "adapter.target_parameters" if lost <= stacks else "adapter.target"
        raise ValueError(
            f"{where}: peft loses an adapter of {shown(last_parts(lost))} on {model.config.model_type} when it loads "
            "it, so nobody could use it: name other layers"
        )
    if ids is not None and (fault := tried(lambda: _fault(saved, loaded, stacks, ids))) is not None:
        names = ",".join(config.target_parameters)
        raise ValueError(
            f"{f'adapter.target_parameters={names}' if names else 'adapter.target'}: peft does not train them rightly "
            f"on {model.config.model_type} ({fault}): leave them out"
        )
    _RIGHT.add(key)


def _loaded_again(
    model: PreTrainedModel, config: AdapterConfig
) -> tuple[PeftModel, PeftModel, Int[Tensor, " tokens"] | None]:
    """A small copy of a model with an adapter, what is loaded of it, and text if experts are to be tried on it."""
    base = small_copy(model, TRIED_SEQ_LEN, "eager").cpu()
    ids = pseudo_random(base, TRIED_SEQ_LEN)
    saved = _adapted(base, config)
    settings: Any = saved.peft_config["default"]
    is_tried = bool(settings.target_parameters) and not isinstance(tried(lambda: _computed(base, ids)), Fault)
    with TemporaryDirectory(prefix="llmtrain-adapter-") as place, expected_warnings(), torch.random.fork_rng([]):
        saved.save_pretrained(place, save_embedding_layers=False)
        return saved, PeftModel.from_pretrained(base, place), ids if is_tried else None  # which changes the base


def _adapted(base: PreTrainedModel, config: AdapterConfig) -> PeftModel:
    """A copy of a model with an adapter that is away from its start."""
    twin = copy.deepcopy(base)
    with expected_warnings(), torch.random.fork_rng([]):
        adapted = put_adapter(twin, lora_config(twin, config, twin.get_output_embeddings()))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # which is zero, as it would be if it were not loaded
                nn.init.normal_(parameter, std=B_STD)
    return adapted


def _lost(saved: PeftModel, loaded: PeftModel) -> set[str]:
    """The layers whose adapter is not loaded as it was saved."""
    own, found = _lora(saved), _lora(loaded)
    return {
        _layer(name)
        for name, weight in own.items()
        if name not in found or not torch.equal(weight.detach(), found[name].detach())
    }


def _fault(saved: PeftModel, loaded: PeftModel, stacks: Set[str], ids: Int[Tensor, " tokens"]) -> str | None:
    """What is wrong with how adapters on stacks are computed, in a few words; None: nothing. Raises FAULTS."""
    outputs = _logits(saved, ids)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    (outputs * weights).sum().backward()
    idle = {_layer(name) for name, each in _lora(saved).items() if each.grad is None or not each.grad.any()}
    if idle & stacks:
        return f"its adapter of {shown(last_parts(idle & stacks))} does nothing"
    with expected_warnings():
        merged = _logits(loaded.merge_and_unload(safe_merge=True), ids)
    off = (merged - outputs).abs().flatten(1).amax(1) > OUTPUT_TOLERANCE * outputs.abs().max()
    # Rounding may send single tokens to other experts.
    return "merged it gives other outputs" if off.float().mean() > 0.5 else None


def _computed(base: PreTrainedModel, ids: Int[Tensor, " tokens"]) -> None:
    """Compute text with a small copy, which not each one can on a CPU."""
    with torch.no_grad():
        _logits(base, ids)


def _logits(model: nn.Module, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens outputs"]:
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits
    return logits.flatten(0, -2).float()


def _lora(model: PeftModel) -> Mapping[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def _layer(name: str) -> str:
    """The layer of an adapter's parameter, of several around each other the outermost."""
    return re.sub(r"(\.base_layer)*\.lora_.*", "", name)
