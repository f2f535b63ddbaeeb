"""A tokenizer with more tokens than the model has embeddings, as one to which tokens were added later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refused
from tiny_chat import write_model
from transformers import AutoTokenizer

from llmtrain.cli.main import main
from llmtrain.cli.sample import sample


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_with_such_a_token_is_refused_by_its_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "hello you"}) + "\n")
    (tmp_path / "choices.jsonl").write_text(json.dumps({"prompt": "a", "choices": ["hello", "b"], "answer": 0}) + "\n")
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "hello", "answer": "b"}) + "\n")
    for argv in (
        ["sample", model, "hello you"],
        ["generate", model, "prompts.jsonl", "out.jsonl"],
        ["eval", model, "--tasks", "choices.jsonl"],
        ["eval", model, "--tasks", "answers.jsonl"],
    ):
        capsys.readouterr()
        assert "the token 'hello' has the id 260 and the model only 260 embeddings" in refused(capsys, *argv), argv


def test_a_template_that_writes_nothing_asks_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (model / "chat_template.jinja").write_text("{# nothing #}")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "you"}) + "\n")
    line = refused(capsys, "generate", model, "prompts.jsonl", "out.jsonl")
    assert "the chat template writes nothing of these messages" in line, line


def test_other_texts_go_on(model: Path) -> None:
    assert sample(str(model), "you").startswith("you")


def test_a_continuation_is_drawn_as_the_options_say(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*options: str) -> str:
        main(["sample", str(model), "you", *options])
        return capsys.readouterr().out

    likeliest = drawn("--temperature", "0", "--max-new-tokens", "6")
    assert likeliest == drawn("--top-k", "1", "--max-new-tokens", "6", "--seed", "3")
    assert len(likeliest) < len(drawn("--temperature", "0", "--max-new-tokens", "12"))
    assert len({drawn("--seed", str(seed), "--temperature", "2", "--top-k", "0") for seed in range(3)}) > 1
