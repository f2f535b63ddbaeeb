"""What ends an answer: tokens of the chat template, then the tokens and texts that the model was published with.

Many models have several: Qwen2.5 ends a turn with `<|im_end|>` and a text with `<|endoftext|>`, Llama 3 a call of tools
with `<|eom_id|>` too. Generation that stops at one of them alone goes on after the others. A model without a token for
the end of a turn may have a text for it, `stop_strings` of its generation config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stops:
    """What ends an answer."""

    ids: tuple[int, ...] = ()  # tokens
    texts: tuple[str, ...] = ()  # of which the tokenizer has no token; they end an answer wherever they are complete


def stops_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, of_template: Sequence[int]) -> Stops:
    """Everything that ends an answer, the template's tokens first, each once.

    The model's are those of its generation config, else the EOS of its configuration. Raises ValueError for
    `stop_strings` that are not texts.
    """
    generation = model.generation_config
    assert generation is None or isinstance(generation, GenerationConfig)
    given = None if generation is None else generation.eos_token_id
    if given is None:
        given = model.config.get_text_config().to_dict().get("eos_token_id")
    texts = as_texts(None if generation is None else generation.stop_strings)
    added = tokenizer.added_tokens_encoder
    of_texts = [added[text] for text in texts if text in added]
    ids = tuple(dict.fromkeys([*of_template, *map(int, as_ids(given)), *of_texts]))
    return Stops(ids, tuple(dict.fromkeys(text for text in texts if text not in added)))


def as_ids(stop: Any) -> list[Any]:
    """The `eos_token_id` of a configuration, one id, several or None, as a list."""
    return list(stop) if isinstance(stop, list | tuple) else [] if stop is None else [stop]


def as_texts(stop: Any) -> list[str]:
    """The `stop_strings` of a generation config, one text, several or None, as a list. Raises ValueError for others."""
    texts = [stop] if isinstance(stop, str) else as_ids(stop)
    wrong = next((text for text in texts if not isinstance(text, str) or not text), None)
    if wrong is not None:
        raise ValueError(f"generation_config.json: stop_strings holds {wrong!r:.40}: give texts that are not empty")
    return texts
