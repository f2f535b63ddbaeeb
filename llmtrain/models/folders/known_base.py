"""Whether a base is the one that an adapter was trained on, wherever the two are put together.

An adapter is a difference: on another base it gives answers that nobody has trained. Its folder says what its base was
(`base.json`, `adapters.base.base_facts`), and whoever opens it compares that, before rows for new tokens are added:
merging, chatting, evaluating, scoring, starting a run from it and continuing to train it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedModel

from llmtrain.models.adapters.base import HASH_DIGITS, base_facts
from llmtrain.models.adapters.quantized import in_4_bits
from llmtrain.models.folders.files import ADAPTER_BASE, ADAPTER_CONFIG
from llmtrain.models.folders.origin import read_base

FACTS = ("weights", "configuration")


def require_base(adapter_folder: Path, base_path: str, config: PeftConfig, base: PreTrainedModel) -> str | None:
    """What could not be compared of a base with the one that an adapter was trained on, one line; None: all was.

    `config`: peft's settings of the adapter; `base`: without rows for tokens that it does not know. Weights in 4 bits
    are not those that they were made from, so the two are compared by their configuration. Raises ValueError for
    another base.
    """
    recorded = read_base(adapter_folder)
    if "fingerprint" in recorded or len(recorded.get("weights", "0" * HASH_DIGITS)) != HASH_DIGITS:
        raise ValueError(
            f"{adapter_folder / ADAPTER_BASE} was written by a version of llmtrain that recorded other facts of the "
            "base: train again, or remove the file if you are sure of the base"
        )
    trained_on = {name: recorded[name] for name in FACTS if name in recorded}
    doubt = None
    if "weights" not in trained_on:
        doubt = f"{adapter_folder} does not say which weights its base had: it is known by its configuration only"
    elif in_4_bits(base) != recorded.get("packed", False):
        doubt = f"{adapter_folder}: weights in 4 bits: {base_path} is known by its configuration only"
        trained_on.pop("weights")
    if not trained_on:
        return f"{adapter_folder} does not say which base it was trained on: {base_path} is taken as it is"
    first_new = min((id_ for ids in token_ids(config.to_dict()).values() for id_ in ids), default=None)
    found = base_facts(base, first_new)
    for name, fact in trained_on.items():
        if fact != found[name]:
            what = name if name == "weights" else _differing(fact, found[name])
            raise ValueError(
                f"{adapter_folder} was trained on another base than {base_path} is now ({what} differ): name the right "
                f"one in {ADAPTER_CONFIG}, or in `llmtrain merge --base`"
            )
    return doubt


def token_ids(settings: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
    """Name of a module -> tokens whose rows of it an adapter has; a list alone is of the embedding."""
    given = settings["trainable_token_indices"] or {}
    return {"embed_tokens": given} if isinstance(given, list) else given


def _differing(trained_on: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The fields of two configurations that differ, with their values."""
    names = [name for name in {**trained_on, **found} if trained_on.get(name) != found.get(name)]
    return ", ".join(f"configuration: {name} {trained_on.get(name)!r} then, {found.get(name)!r} now" for name in names)
