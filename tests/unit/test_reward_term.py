"""A trained reward model as a reward: what its card says decides whether it may be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import write_model
from transformers import AutoTokenizer

from llmtrain.config import TunedModelConfig
from llmtrain.models.load import load_pretrained
from llmtrain.models.reward import RewardModel, pooling_pad_id, score_model
from llmtrain.models.reward_folder import export_reward_model
from llmtrain.reward_term import reward_model_term


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a reward model in it."""
    folder = tmp_path_factory.mktemp("run")
    base = write_model(folder / "base")
    config, tokenizer = TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base)
    pad = pooling_pad_id(tokenizer, (tokenizer.eos_token_id,))
    model = score_model(load_pretrained(config, tokenizer, max_seq_len=64), config, pad_token_id=pad, seed=0)
    weights = {name: p.detach() for name, p in RewardModel(model, "segments").named_parameters()}
    export_reward_model(folder / "model", model.config, weights, tokenizer, dtype=torch.float32, card="")
    return folder


def term(run: Path, accuracy_low: float | None, **settings: Any) -> list[str]:
    """What is said where a reward model with such a card is taken."""
    said: list[str] = []
    (run / "reward_card.json").write_text(json.dumps({"accuracy_low": accuracy_low}))
    spec = {"name": "model", "path": str(run)}
    reward_model_term(spec, "rollout.rewards[0]", torch.device("cpu"), 64, said.append, **settings)
    return said


@pytest.mark.parametrize("accuracy_low", [0.5, 0.41, None])
def test_a_model_no_better_than_chance_is_told_or_refused(run: Path, accuracy_low: float | None) -> None:
    assert term(run, accuracy_low)[0].startswith(f"warning: rollout.rewards[0]: {run} may be no better than chance")
    with pytest.raises(ValueError, match=r"no better than chance.*set rollout\.on_weak_reward=warn"):
        term(run, accuracy_low, refuses_weak=True)


def test_a_model_that_beats_chance_is_taken_without_a_word_of_it(run: Path) -> None:
    (line,) = term(run, 0.51, refuses_weak=True)
    assert "scores" in line and "chance" not in line
