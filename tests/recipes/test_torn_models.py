"""A model's folder with a file that cannot be read: every tool names the file, and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import write_config, write_model, write_rows
from tiny_run import SFT, run_here

from llmtrain.cli.main import main
from llmtrain.models.folders.reward import load_reward_model

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
OF_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "base.json", "generation_config.json")
CONTENTS = {"cut": b'{"for', "empty": b"", "zeros": b"\0" * 64}


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
]


@pytest.mark.parametrize(("kind", "name", "content"), CASES)
def test_every_tool_names_the_file(
    runs: Path, tmp_path: Path, kind: str, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs / kind, tmp_path / "run")
    (run / "model" / name).write_bytes(CONTENTS[content])
    (tmp_path / "prompts.txt").write_text("hi\n")
    prompts, answers = str(tmp_path / "prompts.txt"), str(tmp_path / "answers.jsonl")
    tools: list[list[Any]] = [["sample", str(run), "x"], ["chat", str(run)], ["generate", str(run), prompts, answers]]
    tools += [["merge", str(run), str(tmp_path / "merged")]] if kind == "adapter" else []
    for tool in tools:
        with pytest.raises(SystemExit) as ended:
            main(tool)
        line = capsys.readouterr().err
        assert ended.value.code == 2 and line.count("\n") == 1, line
        assert line.startswith(f"error: {run}/model/{name} cannot be read ("), line
    assert {path.name for path in tmp_path.iterdir()} == {"run", "prompts.txt"}
    with pytest.raises(ValueError, match=rf"{run}/model/{name} cannot be read"):
        load_reward_model(run / "model")
