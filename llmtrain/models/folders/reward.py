"""A finished reward model: its folder -> a frozen model that scores; its card -> whether it beats chance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.models.attention import ATTENTION
from llmtrain.models.folders.adapter import adapter_kind, open_adapter
from llmtrain.models.folders.files import ADAPTER_CONFIG, require_readable
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.model import no_progress_bar
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.system.files import one_line


def beats_chance(card: Mapping[str, Any]) -> bool:
    """Whether a reward model ranks held-out pairs better than a coin does, the whole confidence interval above 1/2."""
    return card["accuracy_low"] is not None and card["accuracy_low"] > 0.5


def card_verdict(card: Mapping[str, Any]) -> str:
    """One line on whether a reward model beats chance, with its held-out accuracy and interval."""
    found = (
        f"accuracy {card['accuracy']:.3f} on {card['pairs']} held-out pairs, "
        f"95 % interval {card['accuracy_low']:.3f} to {card['accuracy_high']:.3f}"
    )
    if beats_chance(card):
        return f"the reward model beats chance: {found}"
    return f"warning: the reward model may be no better than chance: {found}"


def load_reward_model(folder: Path) -> tuple[RewardModel, PreTrainedTokenizerFast]:
    """A finished reward model, frozen, in fp32 on the CPU, an adapter on its base included; and its tokenizer.

    Raises ValueError for a folder that holds none, and for an adapter whose base is not the one it was trained on.
    """
    require_readable(folder)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    try:
        if is_adapter and adapter_kind(folder) is not REWARD:
            raise ValueError("this is the adapter of a language model")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if is_adapter:
            model: Any = open_adapter(folder, tokenizer).get_base_model()
        else:
            with no_progress_bar():
                model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: no reward model can be loaded ({one_line(error)})") from None
    if model.config.num_labels != 1:
        raise ValueError(f"{folder}: a classifier with {model.config.num_labels} labels is not a reward model")
    model.set_attn_implementation(ATTENTION)
    return RewardModel(model.requires_grad_(False), "segments").eval(), tokenizer
