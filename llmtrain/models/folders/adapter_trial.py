"""Whether an adapter that is saved loads again as it was, tried at the start on a small copy of the model.

peft renames the weights of adapters on mixtures of experts as it loads them. For some architectures that loses those
of layers beside the experts, without a word: such a run would train what nobody can load.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import expected_warnings, lora_config
from llmtrain.models.adapters.targets import last_parts, shown
from llmtrain.models.paths.choose import FAULTS
from llmtrain.models.paths.small import small_copy

TRIED_SEQ_LEN = 64
_RIGHT: set[tuple[type, str, str]] = set()  # models and adapters that this process has tried


def require_loading(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Raise ValueError for an adapter of which peft would load a part only; `model`: without it.

    What cannot be tried on a small copy, such as an adapter of layers that the copy lacks, passes.
    """
    key = (type(model), model.config.to_json_string(use_diff=False), config.model_dump_json())
    if key in _RIGHT:
        return
    try:
        lost = _lost(model, config)
    except FAULTS:
        return
    if lost:
        raise ValueError(
            f"adapter.target: peft loses an adapter of {shown(lost)} on {model.config.model_type} when it loads it, so "
            "nobody could use it: name other layers"
        )
    _RIGHT.add(key)


def _lost(model: PreTrainedModel, config: AdapterConfig) -> set[str]:
    """The layers whose adapter is not loaded as it was saved."""
    base = small_copy(model, TRIED_SEQ_LEN, "eager").cpu()
    adapted = copy.deepcopy(base)
    with TemporaryDirectory(prefix="llmtrain-adapter-") as place, expected_warnings(), torch.random.fork_rng([]):
        saved = get_peft_model(adapted, lora_config(adapted, config, adapted.get_output_embeddings()))
        for name, parameter in saved.named_parameters():
            if "lora_B" in name:  # which is zero, as it would be if it were not loaded
                nn.init.normal_(parameter)
        saved.save_pretrained(place, save_embedding_layers=False)
        loaded = PeftModel.from_pretrained(base, place)
    own, found = _lora(saved), _lora(loaded)
    return last_parts(
        re.sub(r"\.lora_.*", "", name)
        for name, weight in own.items()
        if name not in found or not torch.equal(weight, found[name])
    )


def _lora(model: PeftModel) -> Mapping[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if "lora_" in name}
