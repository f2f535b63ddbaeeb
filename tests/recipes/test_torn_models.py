"""A model's folder with a file that cannot be read: every tool names the file, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from tiny_chat import write_config, write_model, write_rows
from tiny_run import SFT, run_here

from llmtrain.models.folders.reward import load_reward_model

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
OF_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "base.json", "generation_config.json")
CONTENTS = {"cut": b'{"for', "empty": b"", "zeros": b"\0" * 64, "a pipe": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that trained a whole model and one that trained an adapter."""
    folder = tmp_path_factory.mktemp("runs")
    write_model(folder / "base", spread=0.1)
    write_rows(folder / "rows.jsonl", seed=1)
    for name, adapter in (("whole", "none"), ("adapter", "lora")):
        sections = {"adapter": {"kind": adapter}, "train": {"steps": 1}, "run": {"dir": str(folder / name)}}
        config = write_config(folder / f"{name}-config", folder / "base", [folder / "rows.jsonl"], **sections)
        assert run_here(config, recipe=SFT).code == 0
    return folder


CASES = [
    (kind, name, content)
    for kind, names in (("whole", (*FILES, "chat_template.jinja")), ("adapter", OF_ADAPTERS))
    for name in names
    for content in CONTENTS
    if (name, content) != ("chat_template.jinja", "cut")  # any text is a template
    if content != "a pipe"
    or name not in ("config.json", "adapter_config.json")  # without these it is no model's folder
]


@pytest.mark.parametrize(("kind", "name", "content"), CASES)
def test_every_tool_names_the_file(
    runs: Path, tmp_path: Path, kind: str, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs / kind, tmp_path / "run")
    if (bytes_of := CONTENTS[content]) is None:  # an open of it waits until somebody writes
        (run / "model" / name).unlink()
        os.mkfifo(run / "model" / name)
    else:
        (run / "model" / name).write_bytes(bytes_of)
    (tmp_path / "prompts.txt").write_text("hi\n")
    prompts, answers = str(tmp_path / "prompts.txt"), str(tmp_path / "answers.jsonl")
    tools: list[list[Any]] = [["sample", str(run), "x"], ["chat", str(run)], ["generate", str(run), prompts, answers]]
    tools += [["merge", str(run), str(tmp_path / "merged")]] if kind == "adapter" else []
    for tool in tools:
        line = refused(capsys, *tool)
        assert line.startswith(f"error: {run}/model/{name} cannot be read ("), line
    assert {path.name for path in tmp_path.iterdir()} == {"run", "prompts.txt"}
    with pytest.raises(ValueError, match=rf"{run}/model/{name} cannot be read"):
        load_reward_model(run / "model")


STOPS_NOWHERE = b'{"eos_token_id": "x"}'
OTHER_SHAPES = "its weights have other shapes than its config.json says"
BASES = [
    *((name, CONTENTS["cut"], rf"base/{name} cannot be read \(") for name in FILES),
    *(
        (name, b"[]", rf"base/{name} cannot be read \(it holds list, not an object\)")
        for name in FILES
        if "config" in name
    ),
    ("generation_config.json", STOPS_NOWHERE, "eos_token_id holds 'x', which is no id of a token"),
    ("chat_template.jinja", b"{% for %}", "the chat template is not Jinja: line 1: Expected an expression"),
    ("tokenizer.json", None, "holds no tokenizer.json: name a tokenizer in tokenizer.path"),
    ("config.json", {"hidden_size": 64, "intermediate_size": 128}, OTHER_SHAPES),
]


@pytest.mark.parametrize(("name", "content", "said"), BASES)
def test_training_names_what_is_wrong_with_its_base(
    runs: Path, tmp_path: Path, name: str, content: bytes | dict[str, int] | None, said: str
) -> None:
    base = shutil.copytree(runs / "base", tmp_path / "base")
    if content is None:
        (base / name).unlink()
        (base / "tokenizer_config.json").unlink()
    elif isinstance(content, bytes):
        (base / name).write_bytes(content)
    else:
        (base / name).write_text(json.dumps(json.loads((base / name).read_text()) | content))
    ended = run_here(write_config(tmp_path / "config", base, [runs / "rows.jsonl"]), recipe=SFT)
    line = ended.err.strip().splitlines()[-1]
    assert ended.code == 2 and line.startswith("error: ") and re.search(said, line), ended.err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "ZORK"}, r"adapter_config.json is not an adapter's of peft \(KeyError: 'ZORK'\)"),
        ({"r": "x"}, "does not fit its base .*base"),
        ({"target_modules": ["nope"]}, "does not fit its base .*base"),
    ],
)
def test_training_names_what_is_wrong_with_an_adapter(
    runs: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    adapter = shutil.copytree(runs / "adapter" / "model", tmp_path / "adapter")
    settings = adapter / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changed))
    ended = run_here(write_config(tmp_path / "config", adapter, [runs / "rows.jsonl"]), recipe=SFT)
    assert ended.code == 2 and re.search(said, ended.err.strip().splitlines()[-1]), ended.err
