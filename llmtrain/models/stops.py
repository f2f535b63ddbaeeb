"""The tokens that end an answer: those of the chat template, then those that the model was published with.

Many models have several: Qwen2.5 ends a turn with `<|im_end|>` and a text with `<|endoftext|>`, Llama 3 a call of tools
with `<|eom_id|>` too. Generation that stops at one of them alone goes on after the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedModel


def stop_ids(model: PreTrainedModel, of_template: Sequence[int]) -> tuple[int, ...]:
    """Every token that ends an answer, those of the template first, each once.

    The model's are those of its generation config, else the EOS of its configuration.
    """
    generation = model.generation_config
    assert generation is None or isinstance(generation, GenerationConfig)
    given = None if generation is None else generation.eos_token_id
    if given is None:
        given = model.config.get_text_config().to_dict().get("eos_token_id")
    return tuple(dict.fromkeys([*of_template, *map(int, as_ids(given))]))


def as_ids(stop: Any) -> list[Any]:
    """The `eos_token_id` of a configuration, one id, several or None, as a list."""
    return list(stop) if isinstance(stop, list | tuple) else [] if stop is None else [stop]
