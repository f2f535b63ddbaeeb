"""A finished reward model: its folder -> a frozen model that scores; its card -> whether it beats chance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llmtrain.models.context import num_positions
from llmtrain.models.folders.adapter import adapter_kind, open_adapter
from llmtrain.models.folders.files import (
    ADAPTER_BASE,
    TRAINING,
    find_reward_card,
    load_fault,
    require_readable,
)
from llmtrain.models.folders.given import is_adapter, model_folder
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.skeleton import no_progress_bar
from llmtrain.models.heads.score import SCORE
from llmtrain.models.paths.choose import UNLIMITED_POSITIONS
from llmtrain.models.text_part import num_embeddings
from llmtrain.models.wrappers.checks import wrap_reward_model
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.system.files import one_line
from llmtrain.system.memory import is_out_of_memory
from llmtrain.system.paths import is_local, local_path
from llmtrain.system.terminal import say
from llmtrain.system.tokenizer import require_reading
from llmtrain.system.typing import Report

FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")  # of a model of the hub


@dataclass(frozen=True)
class Classifier:
    """A model for sequence classification, frozen, in fp32 on the CPU, an adapter on its base included."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_ours: bool  # trained by llmtrain

    @property
    def has_score_head(self) -> bool:
        """Whether it scores hidden states by one matrix, as `transformers`' causal models do."""
        return isinstance(dict(self.model.named_children()).get(SCORE), nn.Module)


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


def reward_folder(path: str, revision: str | None = None) -> Path:
    """The folder of a reward model: of its path, that of a run, or of a name of the hub, downloaded once.

    Raises ValueError if there is none, and for a revision of a folder, which has none.
    """
    if is_local(path) or local_path(path).is_dir():
        if revision is not None:
            raise ValueError(f"{path}: revision={revision} does nothing for a folder: leave it out")
        return model_folder(path)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises several libraries' errors
        raise ValueError(f"{path}: no folder, and not to be had from the hub ({one_line(error)})") from None


def open_classifier(folder: Path, report: Report = say) -> Classifier:
    """The model in a folder; `report` as for `open_adapter`.

    Raises ValueError if it holds none, or an adapter whose base is not its own.
    """
    require_readable(folder)
    try:
        if is_adapter(folder) and adapter_kind(folder) is not REWARD:
            raise ValueError("this is the adapter of a language model")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        require_reading(tokenizer)
        if is_adapter(folder):
            model: Any = open_adapter(folder, tokenizer, report=report).get_base_model()
        else:
            with no_progress_bar():
                scoring = REWARD.auto_class(AutoConfig.from_pretrained(folder))
                model, loading = scoring.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
            if missing := sorted(loading["missing_keys"]):
                raise ValueError(f"its weights lack {missing[0]}: it was not trained to score")
        _require_rows(model, tokenizer)
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{folder}: no reward model can be loaded ({load_fault(error)})") from None
    return Classifier(model.requires_grad_(False).eval(), tokenizer, _is_ours(folder))


def load_reward_model(folder: Path) -> tuple[RewardModel, PreTrainedTokenizerFast]:
    """A finished reward model with one label and a score head, and its tokenizer.

    Raises ValueError for a folder that holds none, and for an adapter whose base is not the one it was trained on.
    """
    found = open_classifier(folder)
    model = require_one_score(found, str(folder))
    assert isinstance(found.tokenizer, PreTrainedTokenizerFast)
    positions = num_positions(model.config) or UNLIMITED_POSITIONS
    module = wrap_reward_model(model, "segments", positions, model.device)
    return module.eval(), found.tokenizer


def require_one_score(found: Classifier, path: str) -> PreTrainedModel:
    """The model of `path` if it has one label and a score head, else raise ValueError."""
    if found.model.config.num_labels != 1:
        raise ValueError(f"{path}: a classifier with {found.model.config.num_labels} labels is not a reward model")
    if not found.has_score_head:
        raise ValueError(f"{path}: {found.model.config.model_type} has no head named {SCORE} that could be taken")
    return found.model


def _require_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) > (rows := num_embeddings(model)):
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings")


def _is_ours(folder: Path) -> bool:
    """Whether llmtrain trained the model in a folder, by the files that its runs write."""
    if (folder / TRAINING).is_file():
        return "reward" in json.loads((folder / TRAINING).read_text(encoding="utf-8")).get("config", {})
    return (folder / ADAPTER_BASE).is_file() or find_reward_card(folder) is not None
