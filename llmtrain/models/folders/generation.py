"""How an exported model generates: as its base does, and it stops where training taught it to stop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.models.folders.files import GENERATION_CONFIG
from llmtrain.models.stops import as_ids

PRIVATE = ("_from_model_config", "transformers_version")
ONE_ANSWER: Mapping[str, Any] = {
    "num_return_sequences": 1,
    "num_beams": 1,
    "return_dict_in_generate": False,
    "max_time": None,
    "stop_strings": None,
}
"""Arguments of `generate` over a base's settings: one answer, token by token. Our generation looks for stop texts
itself; `transformers` asks for the tokenizer."""


def given_generation(model: PreTrainedModel) -> dict[str, Any]:
    """The settings of a loaded model's generation config, as JSON has them; {}: it says nothing."""
    config = model.generation_config
    if config is None:
        return {}
    settings: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict(), default=str))
    return {name: value for name, value in settings.items() if name not in PRIVATE and value is not None}


def generation_config(
    base: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]
) -> GenerationConfig:
    """The base's settings with ours added: further ids to stop at, the tokenizer's BOS and padding.

    `stop_ids`: those that training taught; (): the tokenizer's EOS. A base that does not say whether to sample is
    sampled from, and so is one whose settings make sense with sampling only.
    """
    trained = list(stop_ids) or [id_ for id_ in (tokenizer.eos_token_id,) if id_ is not None]
    stops = list(dict.fromkeys([*trained, *as_ids(base.get("eos_token_id"))]))
    settings = {**base, "eos_token_id": stops[0] if len(stops) == 1 and not stop_ids else stops or None}
    settings["do_sample"] = base.get("do_sample", True)
    for name, token_id in (("bos_token_id", tokenizer.bos_token_id), ("pad_token_id", tokenizer.pad_token_id)):
        if token_id is not None:
            settings[name] = token_id
    if settings.get("pad_token_id") is None:
        settings["pad_token_id"] = tokenizer.eos_token_id
    try:
        config = GenerationConfig(**settings)
        config.validate(strict=True)
    except ValueError:  # a temperature without sampling, mostly: transformers would not save it
        config = GenerationConfig(**settings | {"do_sample": True})
    return config


def read_generation(folder: Path) -> GenerationConfig | None:
    """The generation config in a folder; None: there is none."""
    if not (folder / GENERATION_CONFIG).is_file():
        return None
    config: GenerationConfig = GenerationConfig.from_pretrained(folder)
    return config
