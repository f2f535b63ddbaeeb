"""recipes/demo.py and its rows: what it writes, how it continues, what it reports."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_demo import OVERRIDES, run_demo
from tiny_run import ROOT

pytestmark = pytest.mark.timeout(900)  # several real runs each, also on a slow machine


def script(name: str) -> ModuleType:
    """A script of recipes/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


rows, demo = script("demo_rows"), script("demo")
READ = rows.Definition("io.py", "def read(self, size=-1)", "Read up to size bytes.\n\nAn empty result is the end.")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a demo in an empty folder runs; each stage writes two evaluations and ends well."""
    monkeypatch.chdir(tmp_path)
    found: list[list[str]] = []

    def run(*arguments: str) -> None:
        found.append(list(arguments))
        for stage in demo.STAGES:
            if arguments[1:3] == (stage.verb, stage.config):
                write_run(stage)
        if arguments[1] == "report":
            demo.REPORT.write_text("report")

    monkeypatch.setattr(demo, "run", run)
    return found


def write_run(stage: Any, *, gain: float = 0.3) -> None:
    """The files of a run whose held-out measure got better by `gain`, with intervals of +-0.1."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    after = 0.5 - gain if stage.falls else 0.5 + gain
    key = stage.key
    measured = [
        {"step": step, "elapsed_seconds": 60.0, "eval_loss": 0.0}
        | {key: value, f"{key}_low": value - 0.1, f"{key}_high": value + 0.1}
        for step, value in ((0, 0.5), (8, after))
    ]
    (stage.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in measured))
    (stage.folder / "finished.yaml").write_text("")
    samples = [
        {"step": step, "index": 3, "prompt": [{"content": READ.signature}], "response": text, "score": score}
        for step, text, score in ((0, "Read.\n\x1b[2J", -1.0), (8, "Read the size.", 1.0))
    ]
    (stage.folder / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in samples))


def test_the_stages_run_in_turn_and_the_summary_has_each(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main(["policy.train.steps=3"])
    assert [words[1] for words in commands[1:]] == ["tokenizer", "pretrain", "sft", "rlhf", "rlhf", "report"]
    assert commands[-2] == ["llmtrain", "rlhf", "ppo_demo", "train.steps=3"]
    lines = capsys.readouterr().out.splitlines()
    assert "pretrain  loss      0.500 (0.400 to 0.600)  0.200 (0.100 to 0.300)  yes     1.0" in lines
    after = lines[lines.index("def read(self, size=-1)") :]
    assert after[1].split() == ["before", "PPO", "-1.00", "Read.", "?[2J"]
    assert after[2].split() == ["after", "PPO", "1.00", "Read", "the", "size."]
    assert lines[-1].startswith("chat ")


def test_a_stage_that_is_not_better_by_its_interval_is_named(commands: list[list[str]]) -> None:
    for stage in demo.STAGES[:2]:
        write_run(stage, gain=0.14)  # of an interval of the difference of +-0.1414
    with pytest.raises(SystemExit, match=r"not better .*: pretrain, sft$"):
        demo.main([])


def test_a_stopped_demo_continues_and_a_finished_one_starts_afresh(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in demo.STAGES[:2]:
        write_run(stage)
    demo.main([])
    assert [words[1] for words in commands[1:]] == ["tokenizer", "rlhf", "rlhf", "report"]
    commands.clear()
    demo.main([])
    assert "removing the finished demo" in capsys.readouterr().out
    assert [words[1] for words in commands[1:]] == ["tokenizer", "pretrain", "sft", "rlhf", "rlhf", "report"]


def test_a_stage_that_a_signal_stopped_ends_the_demo(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run", lambda *arguments: commands.append(list(arguments)))
    with pytest.raises(SystemExit, match="the demo is stopped; the same command continues"):
        demo.main([])
    assert [words[1] for words in commands[1:]] == ["tokenizer", "pretrain"]


@pytest.mark.parametrize("argument", ["train.steps=3", "sft", "sft.train.steps", "ppo.train.steps=3"])
def test_an_override_without_its_stage_is_refused(argument: str) -> None:
    with pytest.raises(
        SystemExit, match=f"error: {argument}: give STAGE.KEY=VALUE, with a stage of tokenizer, pretrain"
    ):
        demo.main([argument])


def test_the_description_is_the_first_sentence() -> None:
    assert rows.first_sentence("Read up to\n  size bytes. More.\n\nDetails") == "Read up to size bytes."
    assert rows.first_sentence("return the name of it") == "Return the name of it."
    assert rows.first_sentence("Short.") is None
    assert rows.first_sentence("split(sep) -> list of the words") is None


def test_a_signature_is_written_as_python_has_it() -> None:
    found = list(rows.written("m.py", rows.ast.parse("class A(B):\n  '''Doc.'''\n  async def f(self, *, x=1): ...")))
    assert [(one.signature, one.doc) for one in found] == [("class A(B)", "Doc."), ("def f(self, *, x=1)", None)]
    assert rows.signature("read", "($self, size=-1, /)") == "def read(self, size=-1)"
    assert rows.signature("time", "()") == "def time()"


@pytest.mark.parametrize("corrupt", ["another", "spliced", "garbled", "looped", "cut"])
def test_each_corruption_changes_what_it_says(corrupt: str) -> None:
    words, other = ["Return", "the", "size", "of", "it."], ["Close", "every", "socket", "at", "once."]
    drawn = [getattr(rows, corrupt)(words, other, random.Random(seed)) for seed in range(20)]
    expected = {
        "another": lambda found: found == other,
        "spliced": lambda found: found[0] == "Return" and found[-1] == "once.",
        "garbled": lambda found: len(found) == len(words) and set(found) <= {*words, *other},
        "looped": lambda found: set(found) == set(words) and len(found) > len(words),
        "cut": lambda found: list(found) == words[: len(found)] and 0 < len(found) < len(words),
    }
    assert all(expected[corrupt](list(found)) for found in drawn)


def test_held_out_modules_are_in_no_training_file() -> None:
    modules = [f"module_{number}.py" for number in range(200)]
    held_out = [module for module in modules if rows.is_held_out(module)]
    assert 5 < len(held_out) < 40
    definitions = [
        rows.Definition(module, f"def {kind}_{module[:-3]}(self)", doc and f"Return the name of {module[:-3]}.")
        for module in modules
        for kind, doc in (("get", True), ("_set", None))
    ]
    files = rows.files(definitions)
    assert set(files) == set(rows.FILES)
    for name, found in files.items():
        text = json.dumps(found)
        for module in held_out:
            assert (f"_{module[:-3]}(self)" in text) == name.endswith("_held_out"), (name, module)
    assert len(files["prompts"]) == 200 - len(held_out)


@pytest.mark.soak
def test_the_whole_demo_runs_in_any_folder(tmp_path: Path) -> None:
    ended = run_demo(tmp_path)
    assert ended.returncode in {0, 1}, ended.stdout + ended.stderr
    assert (tmp_path / "runs/demo/report.html").is_file()
    assert "== Summary" in ended.stdout and "after PPO" in ended.stdout
    assert all(f"\n{stage.name:<10}" in ended.stdout for stage in demo.STAGES)
    assert OVERRIDES
