"""Mistakes that need no model are found before one is loaded; those that need no torch before it is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import write_config, write_model, write_rows
from tiny_run import SFT, run_here

from llmtrain.config.load import validate
from llmtrain.config.recipes import SftConfig
from llmtrain.recipes.early import check_early

WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "datasets", "accelerate", "peft"):
    sys.modules[name] = None  # importing it raises
import json
from llmtrain.cli.main import main
for argv in json.loads(sys.argv[1]):
    try:
        main(argv)
    except SystemExit as stopped:
        assert stopped.code == 2, (argv, stopped.code)
    else:
        raise AssertionError(argv)
"""

MISTAKES: dict[str, tuple[list[str], str]] = {
    "a file": (["data.train=rowz.jsonl"], "data.train[0]=rowz.jsonl: no such file or folder"),
    "a file in a folder": (["data.train=texts/rowz"], "data.train[0]=texts/rowz: no such file or folder"),
    "a home of nobody": (["data.train=~no-one/rows.csv"], "data.train[0]=~no-one/rows.csv: no such file or folder"),
    "a model of nobody": (["model.path=~no-one/model"], "model.path=~no-one/model: no such folder"),
    "a tokenizer of nobody": (["tokenizer.path=~no-one/model"], "tokenizer.path=~no-one/model: no such folder"),
    "a template of nobody": (
        ["data.chat_template=~no-one/x.jinja"],
        "data.chat_template=~no-one/x.jinja: no such file",
    ),
    "a glob": (["data.train=texts/*.csv"], "data.train[0]=texts/*.csv: no file matches"),
    "a held-out file": (["data.eval=held.csv"], "data.eval[0]=held.csv: no such file or folder"),
    "a model": (["model.path=./modle"], "model.path=./modle: no such folder"),
    "a model's file": (
        ["model.path=./model/config.json"],
        "model.path=./model/config.json: a file: give the folder that",
    ),
    "a model in runs": (["model.path=runs/modle"], "model.path=runs/modle: no such folder"),
    "a folder without a model": (
        ["model.path=texts"],
        "model.path=texts: holds no model: there is no config.json in it",
    ),
    "a tokenizer": (["tokenizer.path=runs/tokenizr"], "tokenizer.path=runs/tokenizr: no such folder"),
    "a template": (["data.chat_template=chatml"], "data.chat_template=chatml: no such file: give auto, ours, none or"),
    "a folder of something else": (["run.dir=texts"], "run.dir=texts is not empty and is not a run"),
    "warm-up": (["train.steps=5", "train.epochs=null", "optim.warmup_steps=9"], "optim.warmup_steps=9 leaves nothing"),
    "a tracker": (["log.trackers=[mlflow]"], "log.trackers names mlflow, which is not installed"),
    "another tool's key": (["learning_rate=1e-4"], "unknown key learning_rate: here it is optim.lr"),
}
RL_MISTAKES = {
    "a reward model": (
        ["rollout.rewards=[{name: model, path: runs/rewrad}]"],
        "rollout.rewards[0].path=runs/rewrad: no",
    ),
    "a critic": (["policy.critic_init=runs/rewrad"], "policy.critic_init=runs/rewrad: no such folder"),
}


def test_what_needs_no_torch_is_found_before_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("rows.jsonl", "texts/rows.jsonl"):
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    shared = ["data.train=rows.jsonl", "model.path=model"]
    cases = {name: (["sft", "sft_full", *shared, *overrides], line) for name, (overrides, line) in MISTAKES.items()}
    for name, (overrides, line) in RL_MISTAKES.items():
        cases[name] = (["rlhf", "ppo_smollm2_brief", *shared, *overrides], line)
    cases["a stage"] = (
        ["rlhf", "rlhf_smollm2_hh", "model.path=model"],
        "reward_stage: data.train[0]=hh_harmless.jsonl: no",
    )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps([argv for argv, _ in cases.values()])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == len(cases), told
    for line, (name, (_, expected)) in zip(told, cases.items(), strict=True):
        assert line.startswith(f"error: {expected}"), name


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "chat")
    write_rows(folder / "rows.jsonl", seed=1)
    (folder / "odd.jsonl").write_text('{"strange": 1}\n', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"optim": {"warmup_steps": 10_000}, "train": {"steps": None, "epochs": 1}}, "optim.warmup_steps=10000 leaves"),
        ({"data": {"train": ["rows.jsonl", "odd.jsonl"]}}, "odd.jsonl:1"),
        ({"data": {"eval": ["odd.jsonl"], "eval_fraction": 0}}, "odd.jsonl:1"),
        ({"data": {"max_seq_len": 512}, "train": {"microbatch_tokens": 512, "global_batch_tokens": 512}}, "positions"),
        ({"adapter": {"kind": "lora", "target": ["q_porj"]}}, "no linear layer of that name"),
        ({"model": {"dropout": 0.5, "config": {"rope_parametres": 1}}}, "rope_parametres"),
    ],
)
def test_what_needs_the_data_or_the_models_configuration_is_found_before_its_weights_are_read(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], told: str
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loads the model"))
    monkeypatch.chdir(inputs)
    config = write_config(tmp_path, inputs / "chat", [inputs / "rows.jsonl"], **sections)
    ended = run_here(config, recipe=SFT)
    assert ended.code == 2 and told in ended.err and ended.err.count("\n") == 1, ended.err
    if "odd" in told:
        assert "tokenizing" not in ended.out  # nor is a good source tokenized first


def test_a_name_that_holds_a_pattern_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "rows [final] *.jsonl"
    path.write_text("{}", encoding="utf-8")
    least = {"run": {"dir": str(tmp_path / "r")}, "model": {"path": "org/base"}, "train": {"steps": 1}}
    check_early(validate(SftConfig, {**least, "data": {"train": str(path)}}))
    with pytest.raises(ValueError, match="no file matches"):
        check_early(validate(SftConfig, {**least, "data": {"train": f"{path}x"}}))
