"""An adapter of which a part would not load again is refused before a step is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_by_one import SMALL
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.folders import adapter_trial
from llmtrain.models.folders.adapter_trial import require_loading


class Losing:
    """A peft that loses the adapter of one layer as it loads it."""

    @staticmethod
    def from_pretrained(model: Any, folder: str) -> PeftModel:
        loaded = PeftModel.from_pretrained(model, folder)
        for name, parameter in loaded.named_parameters():
            if "layers.1.mlp.up_proj.lora_B" in name:
                parameter.data.zero_()
        return loaded


def test_an_adapter_that_loads_as_it_was_saved_passes_and_draws_nothing() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    state = torch.get_rng_state()
    require_loading(model, AdapterConfig(kind="lora", rank=3))
    require_loading(model, AdapterConfig(kind="dora", target=["q_proj"], layers="1"))
    assert torch.equal(torch.get_rng_state(), state)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_an_adapter_of_which_a_part_is_lost_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_trial, "PeftModel", Losing)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    with pytest.raises(ValueError, match=r"^adapter\.target: peft loses an adapter of up_proj on llama when it loads"):
        require_loading(model, AdapterConfig(kind="lora", rank=5))
    require_loading(model, AdapterConfig(kind="lora", rank=5, target=["q_proj", "down_proj"]))
