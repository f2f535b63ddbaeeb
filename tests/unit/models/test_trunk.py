"""What engines read of a model's layers."""

from __future__ import annotations

from families.tiny import tiny_config
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from llmtrain.models.wrappers.causal_lm import CausalLMLoss


def test_only_layers_that_a_model_has_are_named_for_shards() -> None:
    multimodal = AutoModelForImageTextToText.from_config(tiny_config("gemma3", 96))
    assert "SiglipTextEmbeddings" in multimodal._no_split_modules  # which accelerate would look for in vain
    named = CausalLMLoss(multimodal, "segments", form=None)._no_split_modules
    assert "Gemma3DecoderLayer" in named
    assert set(named) <= {type(module).__name__ for module in multimodal.modules()}
    llama = AutoModelForCausalLM.from_config(tiny_config("llama", 96))
    assert CausalLMLoss(llama, "segments", form=None)._no_split_modules == ["LlamaDecoderLayer"]
