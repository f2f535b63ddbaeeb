"""A trained reward model as a reward: what its card says decides whether it may be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import write_model
from transformers import AutoTokenizer

from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.model import ExportSpec, export_model
from llmtrain.models.load import load_pretrained
from llmtrain.models.wrappers.reward_model import RewardModel, pooling_pad_id, score_model
from llmtrain.rewards.batch import ScoreBatch, WeightedReward
from llmtrain.rewards.model import model_reward


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a reward model in it."""
    folder = tmp_path_factory.mktemp("run")
    base = write_model(folder / "base")
    config, tokenizer = TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base)
    pad = pooling_pad_id(tokenizer, (tokenizer.eos_token_id,))
    model = score_model(load_pretrained(config, tokenizer, max_seq_len=64), config, pad_token_id=pad, seed=0)
    weights = {name: p.detach() for name, p in RewardModel(model, "segments").named_parameters()}
    export_model(folder / "model", weights, "", ExportSpec(model.config, tokenizer, REWARD))
    return folder


def reward_of(run: Path, say: Callable[[str], None] = lambda line: None, **spec: Any) -> WeightedReward:
    spec = {"name": "model", "path": str(run)} | spec
    return model_reward(spec, "rollout.rewards[0]", torch.device("cpu"), 64, say)


def lines_of(run: Path, accuracy_low: float | None, **settings: Any) -> list[str]:
    """The lines that are logged as a reward model with such a card is loaded."""
    lines: list[str] = []
    (run / "reward_card.json").write_text(json.dumps({"accuracy_low": accuracy_low}))
    spec = {"name": "model", "path": str(run)}
    model_reward(spec, "rollout.rewards[0]", torch.device("cpu"), 64, lines.append, **settings)
    return lines


@pytest.mark.parametrize("accuracy_low", [0.5, 0.41, None])
def test_a_model_no_better_than_chance_is_warned_of_or_refused(run: Path, accuracy_low: float | None) -> None:
    assert lines_of(run, accuracy_low)[0].startswith(f"warning: rollout.rewards[0]: {run} may be no better than chance")
    with pytest.raises(ValueError, match=r"no better than chance.*set rollout\.on_weak_reward=warn"):
        lines_of(run, accuracy_low, refuses_weak=True)


def test_a_model_that_beats_chance_is_taken_without_a_warning(run: Path) -> None:
    (line,) = lines_of(run, 0.51, refuses_weak=True)
    assert "reward model" in line and "chance" not in line


def test_a_reward_has_the_name_of_its_folder(run: Path) -> None:
    assert reward_of(run, weight=0.5).name == f"model {run}"


@pytest.mark.parametrize("weight", [float("nan"), "abc", True, None])
def test_a_weight_that_is_no_finite_number_is_refused_with_its_key(run: Path, weight: Any) -> None:
    with pytest.raises(ValueError, match=r"^rollout\.rewards\[0\]\.weight=.*: must be a finite number$"):
        reward_of(run, weight=weight)


def test_the_tools_of_a_row_reach_the_models_template(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    rows = [{}, {"tools": json.dumps([{"name": "search", "description": ""}])}]
    plain, with_tools = reward_of(tmp_path / "run").function(ScoreBatch(["hi", "hi"], ["yes", "yes"], rows, [0, 1]))
    assert plain != with_tools


HEAD = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
TAIL = (
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
KEEPS = HEAD + "{{ m['content'] }}" + TAIL
DROPS = HEAD + "{{ m['content'].split('</think>')[-1] }}" + TAIL
WRITES = (
    HEAD
    + "{% if m['role'] == 'assistant' and '</think>' not in m['content'] %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    + "{{ m['content'] }}"
    + TAIL
)


@pytest.mark.parametrize("template", [KEEPS, DROPS, WRITES], ids=["keeps", "drops", "writes"])
def test_a_model_whose_template_opens_a_thought_scores_such_answers(run: Path, tmp_path: Path, template: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    answers = ["<think>\na\n</think>\n\nb", "<think>\na\n</think>\n\nc", "<think>\na"]
    prompts = [({"role": "user", "content": "hi"},)] * len(answers)
    scores = reward_of(tmp_path / "run").function(ScoreBatch(prompts, answers, [{}] * 3, range(3)))
    assert len(scores) == 3 and scores[0] != scores[1]


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    from llmtrain.models.folders.reward import reward_folder

    with pytest.raises(ValueError, match=rf"^{tmp_path}: revision=main does nothing for a folder: leave it out$"):
        reward_folder(str(tmp_path), "main")
