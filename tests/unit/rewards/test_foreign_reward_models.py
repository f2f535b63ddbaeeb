"""Reward models that others trained: read as their template has it, scored as `transformers` does, or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scripted_model import scripted_tokenizer
from tiny_chat import CHATML
from tiny_paths import longrope
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    RobertaConfig,
)
from trl import chat_template_utils as trl_templates

from llmtrain.models.folders.files import TRAINING
from llmtrain.rewards.batch import ScoreBatch, WeightedReward
from llmtrain.rewards.model import model_reward

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, max_position_embeddings=512),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256),
    "phi3": Phi3Config(
        **SMALL,
        max_position_embeddings=512,
        original_max_position_embeddings=128,
        rope_parameters=longrope(128, head_dim=16),
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=2),
    "bert": BertConfig(**SMALL, max_position_embeddings=256),
    "roberta": RobertaConfig(**SMALL, max_position_embeddings=256 + 259),
}
PROMPTS = ["hi", "what is it?", "2 + 2"]
RESPONSES = ["yes", "no, not at all", "4"]


def write_classifier(
    folder: Path,
    name: str,
    template: str | None = CHATML,
    *,
    pad: str = "<|pad|>",
    labels: int = 1,
    special: Sequence[str] = ("<|im_start|>",),
    stop: str = "<|im_end|>",
) -> Path:
    """A model for sequence classification whose scores differ from token to token, and its tokenizer."""
    tokenizer = scripted_tokenizer(folder, special, template, stop)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    shape = SHAPES[name].__class__(
        **SHAPES[name].to_diff_dict()
        | {"vocab_size": len(tokenizer), "num_labels": labels, "pad_token_id": tokenizer.pad_token_id}
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(shape)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def reward_of(folder: Path, say: Any = lambda line: None, **settings: Any) -> WeightedReward:
    spec = {"name": "model", "path": str(folder)} | settings.pop("spec", {})
    return model_reward(spec, "rollout.rewards[0]", CPU, 64, say, **settings)


def scored(reward: WeightedReward, prompts: Sequence[Any] = PROMPTS, responses: Sequence[str] = RESPONSES) -> Any:
    return reward.function(ScoreBatch(prompts, responses, [{}] * len(prompts), range(len(prompts))))


def stock(folder: Path, label: int = 0) -> list[float]:
    """The score of each conversation by `transformers`, on the whole text of the chat template, or on a pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        if tokenizer.chat_template is None:
            inputs = tokenizer(prompt, response, return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            scores.append(float(model(**inputs).logits[0, label]))
    return scores


@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("ending", [CHATML, CHATML.replace("<|im_end|>\n'", "<|im_end|>'")], ids=["break", "none"])
def test_a_causal_model_scores_the_last_token_of_its_templates_whole_text(
    tmp_path: Path, name: str, pad: str, ending: str
) -> None:
    lines: list[str] = []
    folder = write_classifier(tmp_path, name, ending, pad=pad)
    assert scored(reward_of(folder, lines.append)) == pytest.approx(stock(folder), abs=1e-4)
    (line,) = lines
    assert "the whole text of its chat template" in line and "scores equal transformers'" in line


@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"])
def test_a_causal_model_without_packs_is_scored_by_its_own_forward(tmp_path: Path, pad: str) -> None:
    lines: list[str] = []
    folder = write_classifier(tmp_path, "bloom", pad=pad)
    assert scored(reward_of(folder, lines.append)) == pytest.approx(stock(folder), abs=1e-4)
    assert "scores by transformers' own BloomForSequenceClassification, as packed ones" in lines[0]


def test_packs_that_are_right_for_short_documents_only_are_not_taken(tmp_path: Path) -> None:
    """RoPE by the length of the longest document changes past 128 tokens, and the first prompt is shorter."""
    lines: list[str] = []
    folder = write_classifier(tmp_path, "phi3")
    assert scored(reward_of(folder, lines.append)) == pytest.approx(stock(folder), abs=1e-4)
    assert "as packed ones differ in longer documents" in lines[0]


def test_an_adapter_that_peft_made_scores_as_peft_does(tmp_path: Path) -> None:
    base = write_classifier(tmp_path / "base", "llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    tokenizer.save_pretrained(tmp_path / "adapter")
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            expected.append(float(adapted(**inputs).logits[0, 0]))
    assert scored(reward_of(tmp_path / "adapter")) == pytest.approx(expected, abs=1e-4)


def test_one_that_llmtrain_trained_is_read_to_the_end_of_the_answer(tmp_path: Path) -> None:
    """Its template writes a line break after that."""
    folder = write_classifier(tmp_path, "llama")
    foreign = scored(reward_of(folder))
    (folder / TRAINING).write_text(json.dumps({"config": {"reward": {}}}))
    lines: list[str] = []
    ours = scored(reward_of(folder, lines.append))
    assert "as llmtrain trained it" in lines[0] and ours != pytest.approx(foreign, abs=1e-3)
    short = write_classifier(tmp_path / "short", "llama", CHATML.replace("<|im_end|>\n'", "<|im_end|>'"))
    ending = "{{ '\n' if not loop.last or add_generation_prompt }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(short)
    tokenizer.chat_template = tokenizer.chat_template.replace("{% endfor %}", ending)
    tokenizer.save_pretrained(short)
    assert scored(reward_of(short)) == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize("template", [None, CHATML], ids=["pairs", "template"])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_scores_as_transformers_does(tmp_path: Path, name: str, template: str | None) -> None:
    lines: list[str] = []
    folder = write_classifier(tmp_path, name, template)
    assert scored(reward_of(folder, lines.append)) == pytest.approx(stock(folder), abs=1e-4)
    assert "transformers' own" in lines[0]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_label_of_several_is_named_by_its_index(tmp_path: Path, name: str) -> None:
    folder = write_classifier(tmp_path, name, labels=3)
    for label in range(3):
        found = scored(reward_of(folder, spec={"label": label}))
        assert found == pytest.approx(stock(folder, label), abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (
            3,
            None,
            r"has 3 labels \(0: LABEL_0, 1: LABEL_1, 2: LABEL_2\): give the index",
        ),
        (3, 3, r"rollout\.rewards\[0\]\.label=3: .* has 3 labels"),
        (3, "LABEL_1", r"label='LABEL_1'"),
        (1, 1, r"label=1: .* has 1 labels"),
        (3, True, r"label=True"),
    ],
)
def test_a_label_that_is_not_there_is_refused(tmp_path: Path, labels: int, label: Any, message: str) -> None:
    folder = write_classifier(tmp_path, "llama", labels=labels)
    with pytest.raises(ValueError, match=message):
        reward_of(folder, spec={} if label is None else {"label": label})


@pytest.mark.parametrize(("name", "positions"), [("llama", 512), ("bert", 256), ("roberta", 256), ("gpt2", 256)])
def test_a_model_with_few_positions_is_refused(tmp_path: Path, name: str, positions: int) -> None:
    folder = write_classifier(tmp_path, name)
    with pytest.raises(
        ValueError, match=rf"has {positions} positions, fewer than data\.max_seq_len={positions + 1}: lower"
    ):
        reward_of(folder, max_document_tokens=positions + 1)
    reward_of(folder, max_document_tokens=positions)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_conversation_that_is_too_long_is_abstained_from_and_said_once(tmp_path: Path, name: str) -> None:
    lines: list[str] = []
    reward = reward_of(write_classifier(tmp_path, name), lines.append)
    scores = scored(reward, ["hi"] * 3, ["a" * 600, "b", "c" * 700])
    assert scores[0] is None and scores[1] is not None and scores[2] is None
    assert sum("abstains" in line for line in lines) == 1


SYSTEM = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("name", "template", "prompt", "message"),
    [
        ("llama", NO_SYSTEM, SYSTEM, "no system"),
        ("llama", None, SYSTEM, "no chat template, and there is more than a question"),
        ("bert", None, SYSTEM, "no chat template, and there is more than a question"),
    ],
)
def test_a_model_that_cannot_read_the_first_prompt_is_refused(
    tmp_path: Path, name: str, template: str | None, prompt: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^rollout\.rewards\[0\]: .* cannot score the first prompt: .*{message}"):
        reward_of(write_classifier(tmp_path, name, template), example=(prompt, {}))


def test_a_prompt_that_a_template_refuses_later_is_abstained_from(tmp_path: Path) -> None:
    lines: list[str] = []
    reward = reward_of(write_classifier(tmp_path, "llama", NO_SYSTEM), lines.append)
    scores = scored(reward, [SYSTEM, "hi", SYSTEM], ["a", "b", "c"])
    assert scores[0] is None and scores[1] is not None and scores[2] is None
    assert [line for line in lines if "abstains" in line and "no system" in line] == lines[1:]


def test_a_text_without_a_template_ends_with_eos(tmp_path: Path) -> None:
    """As TRL's reward trainer reads texts."""
    folder = write_classifier(tmp_path, "llama", None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad():
            ids = tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt")["input_ids"]
            expected.append(float(model(ids).logits[0, 0]))
    assert scored(reward_of(folder)) == pytest.approx(expected, abs=1e-4)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "llama")
    scripted_tokenizer(folder, ("<|im_start|>", "<|more|>"), CHATML)
    with pytest.raises(ValueError, match=r"its tokenizer has 261 tokens but the model only 260 embeddings"):
        reward_of(folder)


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    from tiny_chat import write_model

    with pytest.raises(ValueError, match=r"its weights lack score\.weight: it was not trained to score"):
        reward_of(write_model(tmp_path))


def test_a_name_of_the_hub_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_classifier(tmp_path, "llama")
    asked: list[Any] = []

    def snapshot(name: str, **settings: Any) -> str:
        asked.append((name, settings["revision"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    reward = reward_of(folder, spec={"path": "owner/name", "revision": "main"})
    assert asked == [("owner/name", "main")] and reward.name == "model owner/name"
    assert scored(reward) == pytest.approx(stock(folder), abs=1e-4)


def test_a_name_that_the_hub_does_not_give_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(name: str, **settings: Any) -> str:
        raise OSError("not\nfound")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(ValueError, match=r"^owner/name: no folder, and not to be had from the hub \(.*\)$"):
        reward_of(tmp_path, spec={"path": "owner/name"})


OPENING = {
    "DeepSeek-R1": (
        trl_templates.deepseek_r1_distill_chat_template,
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
    "Qwen3.5": (trl_templates.qwen3_5_think_chat_template, ("<|im_start|>", "<think>", "</think>"), "<|im_end|>"),
    "Nemotron 3": (trl_templates.nemotron_3_nano_chat_template, ("<|im_start|>", "<think>", "</think>"), "<|im_end|>"),
}
THOUGHTS = ["<think>\na\n</think>\n\nb", "<think>\na\n</think>\n\nc", "<think>\na", "<think>\n", "b", ""]


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("family", OPENING)
def test_a_model_whose_template_opens_a_thought_scores_every_answer(tmp_path: Path, family: str, is_ours: bool) -> None:
    template, special, stop = OPENING[family]
    folder = write_classifier(tmp_path, "llama", template, special=special, stop=stop)
    if is_ours:
        (folder / TRAINING).write_text(json.dumps({"config": {"reward": {}}}))
    scores = scored(reward_of(folder), ["hi"] * len(THOUGHTS), THOUGHTS)
    assert all(score is not None for score in scores) and scores[0] != scores[1]
