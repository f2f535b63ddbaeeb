"""Inputs that a fuzz found to end in a traceback, or never: each kind is one line with exit code 2."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import refusals
import torch
from tiny_chat import write_config, write_model

from llmtrain.cli.main import main

DEEP = "[" * 2_000 + "]" * 2_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "chat")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb that must stop with one line; the line."""
    return partial(refusals.refused, capsys)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"run: {DEEP}", "nested too deeply"),
        ("run: {dir: 2020-13-45}", "month must be in 1..12"),
        ("run: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("run: !!binary é", "failed to"),
        ("run: !!int x", "invalid literal"),
        ("run: *nowhere", "undefined alias"),
    ],
)
def test_yaml_that_cannot_be_read_names_its_file(refused: Any, tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    for verb in ("sft", "preview", "rlhf", "prepare"):
        line = refused(verb, path)
        assert str(path) in line and reason in line


@pytest.mark.parametrize("value", [DEEP, "2020-13-45", "!!int x"])
def test_an_override_that_cannot_be_read_is_quoted_in_part(refused: Any, tmp_path: Path, value: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: {dir: x}")
    line = refused("sft", path, f"optim.lr={value}")
    assert "override 'optim.lr=" in line and len(line) < 600
    assert "the value is" in refused("data", tmp_path, f"fields={value}")


@pytest.mark.parametrize("thing", ["/dev/zero", "a pipe"])
def test_a_file_without_an_end_is_not_read(refused: Any, model: Path, tmp_path: Path, thing: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if thing == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(thing)
    assert "not a file" in refused("generate", model, path, tmp_path / "out.jsonl")
    assert str(path) in refused("sft", path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    (run / "metrics.jsonl").symlink_to(path)
    assert "metrics.jsonl: it is not a file" in refused("report", run)


@pytest.fixture
def pipe_of_the_shell() -> Iterator[str]:
    """A configuration as `<(make_config)` gives it: it can be read once."""
    reading, writing = os.pipe()
    os.write(writing, b"run: {dir: x}\nmodel: {path: nowhere/base}\ndata: {train: rows.jsonl}\ntrain: {steps: 1}\n")
    os.close(writing)
    yield f"/dev/fd/{reading}"
    os.close(reading)


def test_a_pipe_of_the_shell_is_read(pipe_of_the_shell: str) -> None:
    from llmtrain.config.load import read_yaml

    assert read_yaml(pipe_of_the_shell)["run"] == {"dir": "x"}


@pytest.mark.parametrize(
    "words",
    [["sft"], ["rlhf", "preference.loss=dpo"], ["prepare", "--recipe=sft"], ["crossval", "--folds=2"]],
    ids=lambda words: words[0],
)
def test_every_verb_reads_a_pipe_of_the_shell_once(refused: Any, pipe_of_the_shell: str, words: list[str]) -> None:
    assert "rows.jsonl" in refused(words[0], pipe_of_the_shell, *words[1:])


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "tokenizer_class", {}),
        ("tokenizer_config.json", "tokenizer_class", 3),
        ("tokenizer_config.json", "extra_special_tokens", 7),
        ("config.json", "mlp_bias", [False]),
        ("config.json", "hidden_size", "wide"),
        ("config.json", "output_hidden_states", ["x"]),
        ("tokenizer.json", "model", []),
    ],
)
def test_a_model_folder_that_is_not_right_is_named(
    refused: Any, model: Path, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tree = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(tree | {key: value}))
    assert str(folder) in refused("sample", folder, "hello")


def test_a_prompt_that_is_no_unicode_is_named(
    refused: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the prompt holds \\udc80, half a surrogate pair" in refused("sample", model, "a\udc80")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\udc80\n"))
    assert "a message holds \\udc80, half a surrogate pair" in refused("chat", model)


def test_a_torn_chat_template_is_named(refused: Any, model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text("{% if x")
    config = write_config(tmp_path, folder, [rows], data={"template_kwargs": {"x": 1}})
    assert "the chat template is not Jinja: line 1: " in refused("sft", config)


def test_memory_that_runs_out_is_one_line(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError("cannot allocate 3 TB")

    monkeypatch.setattr("llmtrain.cli.survey.survey", full)
    assert "not enough memory (cannot allocate 3 TB)" in refused("data", tmp_path)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "raises",
    [
        lambda: torch.empty(1 << 60),
        lambda: torch.zeros(1 << 45).expand(2, -1).contiguous(),
        OutOfMemoryError("HIP: no more"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_memory_that_torch_lacks_is_one_line_too(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: Any
) -> None:
    def full(*_: object) -> None:
        if isinstance(raises, Exception):
            raise raises
        raises()

    monkeypatch.setattr("llmtrain.cli.survey.survey", full)
    line = refused("data", tmp_path)
    assert "not enough memory (" in line and "train.microbatch_tokens" in line


def test_another_error_of_torch_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.cli.survey.survey", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["data", str(tmp_path)])


@pytest.mark.parametrize("size", [10_000_001, 2**31, 10**30])
def test_a_vocabulary_of_billions_is_refused_before_the_library_aborts(refused: Any, tmp_path: Path, size: int) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"sources: {tmp_path}\noutput: {tmp_path / 'out'}\nvocab_size: {size}\n")
    assert "less than or equal to 10000000" in refused("tokenizer", path)
