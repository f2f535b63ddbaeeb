"""The `llmtrain` command: help that is there at once, and one line for what it cannot run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from llmtrain.cli.main import TOOLS, VERBS, main

LIGHT = """
import sys
from llmtrain.cli.main import TRAINING, main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "transformers", "numpy", "datasets", "pyarrow", "accelerate", "matplotlib", "sklearn", "optuna"}
    assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
    schemas = {"pydantic", "yaml"} & sys.modules.keys()
    assert not schemas or sys.argv[1] in TRAINING, schemas
"""


@pytest.mark.parametrize(
    ("argv", "code", "shown"),
    [
        (["--help"], 0, "pretrain"),
        (["sft", "--help"], 0, "adapter.rank"),
        (["rlhf", "--help"], 0, "reward.margin"),
        *(
            (["rlhf", "--help"], 0, key)
            for key in ("usage: llmtrain rlhf CONFIG", "preference.beta  (", "rollout.rewards  (")
        ),
        (["--version"], 0, f"llmtrain {version('llmtrain')}\n"),
        (["configs"], 0, "sft_smollm2_lora"),
        *(([verb, "--help"], 0, f"usage: llmtrain {verb}") for verb in TOOLS),
        (["stf"], 2, "the nearest is sft"),
        (["chat"], 2, "RUN_OR_MODEL"),
        (["sft", "sft_full", "zzz=1"], 2, "unknown key zzz"),
        (["rlhf", "sft_smollm2_lora"], 2, "configuration of sft"),
    ],
)
def test_nothing_heavy_is_imported_before_the_arguments_are_read(argv: list[str], code: int, shown: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert shown in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stf"], "error: unknown verb stf: the nearest is sft\n"),
        (["zzz"], "error: unknown verb zzz: `llmtrain --help` lists them\n"),
        (
            ["eval", "--tasks", "piqa"],
            "error: which model? Give a run's folder, a model's, an adapter's, or a GGUF file\n",
        ),
        (["sft"], "error: usage: llmtrain sft CONFIG [key=value ...]; `llmtrain sft --help` lists every key\n"),
        (["pretrain"], "error: usage: llmtrain pretrain CONFIG [key=value ...]; `llmtrain pretrain --help` lists"),
        (["rlhf"], "error: usage: llmtrain rlhf CONFIG [key=value ...]; `llmtrain rlhf --help` lists"),
        (
            ["sft", "data.train=x"],
            "error: usage: llmtrain sft CONFIG [key=value ...]; `llmtrain sft --help` lists every key\n",
        ),
        (["sft", "sft_ful"], "error: sft_ful is neither a file nor a shipped configuration: the nearest is sft_full\n"),
        (["sft", "zzz"], "error: zzz is neither a file nor a shipped configuration: `llmtrain configs` lists them\n"),
        (
            ["sft", "--packs", "2"],
            "error: unknown option --packs; usage: llmtrain sft CONFIG [key=value ...]; `llmtrain sft --help` lists",
        ),
        (["configs", "zero"], "error: zero is not a shipped configuration: the nearest is "),
        (
            ["rlhf", "bytes"],
            "error: bytes has none of the sections reward, preference, policy, which rlhf needs: it is",
        ),
        (["pretrain", "dpo_smollm2"], "error: dpo_smollm2 is a configuration of rlhf, not of pretrain\n"),
        (["pretrain", "rlhf_smollm2_hh"], "error: rlhf_smollm2_hh is a configuration of rlhf, not of pretrain\n"),
        (["tokenizer", "demo"], "error: demo is a configuration of pretrain, not of tokenizer\n"),
    ],
)
def test_what_cannot_run_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith(message) and told.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n", "error: run is a section: give its keys, as in run: {...}, not None"),
        ("run: 3\n", "error: run is a section: give its keys, as in run: {...}, not 3"),
        ("", "error: config.yaml: not a mapping of sections\n"),
        ("- run\n", "error: config.yaml: not a mapping of sections\n"),
    ],
)
def test_a_file_without_sections_is_not_taken_for_another_recipes(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["sft", "config.yaml"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(message) and shown.count("\n") == 1


def test_a_folder_is_not_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    with pytest.raises(SystemExit):
        main(["sft", "texts"])
    assert capsys.readouterr().err.startswith("error: texts is a folder: name a YAML file in it")


def test_preview_refuses_a_number_of_packs_below_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["preview", "sft_full", "--packs", "0"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --packs=0: must be at least 1\n"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("argv", [["--help"], ["sft", "--help"], ["rlhf", "--help"], ["configs"]])
def test_a_reader_that_closes_early_ends_the_command_without_a_word(argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has its lines
    argv = [sys.executable, "-m", "llmtrain", *argv]
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run(argv, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


def test_tasks_are_listed_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    main(["eval", "--tasks", "list"])
    assert "arc_easy" in capsys.readouterr().out
