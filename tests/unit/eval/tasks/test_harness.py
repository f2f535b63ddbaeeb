"""The command that hands a model to lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.eval.tasks import harness
from llmtrain.eval.tasks.harness import HarnessOptions, harness_command, run_harness


def test_a_model_is_handed_over_by_its_folder(tmp_path: Path) -> None:
    words = harness_command(tmp_path, HarnessOptions(["piqa", "copa"], 5, 0, chat=True, include="mine"))[1:]
    assert words == [
        *("-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={tmp_path}", "--tasks", "piqa", "copa"),
        *("--limit", "5", "--num_fewshot", "0", "--include_path", "mine", "--apply_chat_template"),
    ]


def test_an_adapter_is_handed_over_with_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    words = harness_command(tmp_path, HarnessOptions(["piqa"]))
    assert words[6:] == [
        "--model_args",
        "pretrained=base",
        f"peft={tmp_path}",
        f"tokenizer={tmp_path}",
        "--tasks",
        "piqa",
    ]


def test_a_harness_that_is_missing_or_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'llmtrain\[harness\]'"):
        run_harness(str(tmp_path), HarnessOptions(["piqa"]))
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    monkeypatch.setattr(harness, "harness_command", lambda folder, options: ["false"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="ended with status 1"):
        run_harness(str(tmp_path), HarnessOptions(["piqa"]))
