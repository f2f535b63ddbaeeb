"""Reward models of families that transformers has no class for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families.steps import write_base
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.folders.classes import scores_here_only
from llmtrain.models.folders.kind import REWARD, as_described
from llmtrain.models.folders.model import WRAPPER_PREFIX, ExportSpec, export_model
from llmtrain.models.folders.reward import open_classifier
from llmtrain.models.load import load_pretrained
from llmtrain.models.wrappers.reward_model import loading_note, score_model


def reward_model(base: Path, folder: Path) -> torch.Tensor:
    """Write the folder of a reward model on a base; its head."""
    config, tokenizer = TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base)
    causal = load_pretrained(config, tokenizer, max_seq_len=32)
    model = score_model(causal, config, pad_token_id=tokenizer.pad_token_id, seed=0)
    weights = {f"{WRAPPER_PREFIX}{name}": tensor for name, tensor in model.state_dict().items()}
    export_model(folder, weights, "", ExportSpec(model.config, tokenizer, REWARD))
    head: torch.Tensor = model.get_submodule("score").weight
    return head


@pytest.mark.parametrize("family", ["cohere", "mamba", "gemma4_text"])
def test_a_family_without_a_class_gets_one_that_every_process_of_llmtrain_loads(family: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base", family)
    head = reward_model(tmp_path / "base", tmp_path / "reward")
    model = open_classifier(tmp_path / "reward").model
    assert torch.equal(model.get_submodule("score").weight, head)
    assert model(input_ids=torch.tensor([[40, 41, 42]])).logits.shape == (1, 1)
    shape = AutoConfig.from_pretrained(tmp_path / "reward")
    assert shape.model_type in (loading_note(shape) or "")
    assert "llmtrain" in as_described(REWARD, shape).code


def test_padding_after_an_answer_does_not_change_its_score(tmp_path: Path) -> None:
    write_base(tmp_path / "base", "cohere")
    reward_model(tmp_path / "base", tmp_path / "reward")
    found = open_classifier(tmp_path / "reward")
    padding = found.tokenizer.pad_token_id
    ids = torch.tensor([[40, 41, 42, padding, padding], [40, 41, 42, 43, 44]])
    scores = found.model(input_ids=ids, attention_mask=(ids != padding).long()).logits
    torch.testing.assert_close(scores[0], found.model(input_ids=ids[:1, :3]).logits[0], rtol=1e-4, atol=1e-5)


def test_a_family_with_a_class_keeps_it_for_everyone(tmp_path: Path) -> None:
    write_base(tmp_path / "base", "qwen3")
    reward_model(tmp_path / "base", tmp_path / "reward")
    shape = AutoConfig.from_pretrained(tmp_path / "reward")
    assert not scores_here_only(shape) and loading_note(shape) is None
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1


@pytest.mark.slow
def test_plain_transformers_says_that_it_does_not_know_one_that_was_made_here(tmp_path: Path) -> None:
    write_base(tmp_path / "base", "cohere")
    reward_model(tmp_path / "base", tmp_path / "reward")
    code = (
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        f"Auto.from_pretrained({str(tmp_path / 'reward')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "Unrecognized configuration class" in done.stderr
