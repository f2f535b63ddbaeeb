"""The folder of a run: whose it is, what it records, and the model that is made from a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.config.load import validate
from llmtrain.config.recipes import PolicyStageConfig, PretrainConfig
from llmtrain.runs.folder import immaterial, may_change, check_folder, record_ledger, record_run

FACTS = {"model_revision": None, "tokenizer_fingerprint": "ab12", "stores": ["a-1", "b-2"], "device": "cpu"}


def config_of(folder: Path, **sections: Any) -> PretrainConfig:
    tree: dict[str, Any] = {
        "run": {"dir": str(folder)},
        "model": {"preset": "1m"},
        "tokenizer": {"path": "tokenizer"},
        "data": {"train": "a.txt"},
        "train": {"steps": 10},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return validate(PretrainConfig, tree)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that has started."""
    config = config_of(tmp_path / "run")
    assert check_folder(config.run, config) == tmp_path / "run"
    record_run(tmp_path / "run", config, FACTS)
    return tmp_path / "run"


def test_looking_at_a_folder_makes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path / "deep" / "run")
    check_folder(config.run, config)
    assert list(tmp_path.iterdir()) == []


def test_what_was_asked_for_is_recorded_with_its_defaults(folder: Path) -> None:
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config_of(folder).model_dump()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["cpus"] == os.cpu_count()
    assert FACTS.items() <= environment.items()


def test_the_recorded_configuration_is_the_same_run(folder: Path) -> None:
    again = validate(PretrainConfig, yaml.safe_load((folder / "config.yaml").read_text()))
    assert check_folder(again.run, again) == folder


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"steps": 20}},
        {"train": {"microbatch_tokens": 2048}},
        {"eval": {"every": 7}},
        {"checkpoint": {"keep": 5}},
        {"log": {"every": 1}},
        {"data": {"train": "a.txt", "cache_dir": "/elsewhere"}},
        {"data": {"train": "moved/renamed.txt"}},
    ],
)
def test_a_run_goes_on_with_what_may_change(folder: Path, sections: dict[str, Any]) -> None:
    config = config_of(folder, **sections)
    check_folder(config.run, config)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"optim": {"lr": 0.5}}, "optim.lr is 0.0006 there and 0.5 here"),
        ({"run": {"seed": 1}}, "run.seed is 0 there and 1 here"),
        ({"model": {"preset": "3m"}}, "model.preset is '1m' there and '3m' here"),
        ({"data": {"train": ["a.txt", "b.txt"]}}, "data.train is [{'path': 'a.txt', "),
        ({"data": {"train": [{"path": "b.txt", "weight": 2}]}}, "data.train.weight is None there and 2.0 here"),
        ({"train": {"global_batch_tokens": 32768}}, "train.global_batch_tokens is 65536 there and 32768 here"),
    ],
)
def test_another_run_is_told_by_its_first_difference(folder: Path, sections: dict[str, Any], told: str) -> None:
    config = config_of(folder, **sections)
    with pytest.raises(ValueError, match="holds another run") as caught:
        check_folder(config.run, config)
    assert f"({told}" in str(caught.value)


def test_what_may_change_is_marked_in_the_schemas() -> None:
    of_finished = {"run.resume", "run.push_to_hub", "run.timeout_minutes", "data.cache_dir", "log"}
    changed = {f"train.{name}" for name in ("steps", "epochs", "microbatch_tokens", "compile", "spike_factor")}
    changed |= {"data.train.path", "data.eval.path"}  # what is there is pinned by its content
    changed |= {"train.activation_checkpointing", "train.max_nonfinite_steps", "eval.every", "eval.patience"}
    assert set(immaterial(PolicyStageConfig)) == of_finished
    assert set(may_change(PolicyStageConfig)) == of_finished | changed | {"checkpoint", "policy.kl_budget"}


def test_a_run_that_must_be_new_is_not_resumed(folder: Path) -> None:
    config = config_of(folder, run={"resume": "never"})
    with pytest.raises(ValueError, match=r"run\.resume is never"):
        check_folder(config.run, config)


@pytest.mark.parametrize("name", ["tokenizer_fingerprint", "model_revision", "stores"])
def test_a_run_whose_inputs_changed_does_not_go_on(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name.replace('_', ' ')} was .* and is other now"):
        record_run(folder, config_of(folder), FACTS | {name: "other"})


def test_what_a_run_runs_on_may_change(folder: Path) -> None:
    record_run(folder, config_of(folder), FACTS | {"device": "cuda"})
    assert json.loads((folder / "environment.json").read_text())["device"] == "cuda"


def test_a_start_that_was_killed_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path / "run")

    def die(path: Path, to: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            record_run(tmp_path / "run", config, FACTS)
    check_folder(config.run, config)
    record_run(tmp_path / "run", config, FACTS)
    check_folder(config.run, config)


def test_a_ledger_that_was_killed_while_it_was_written_is_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_ledger(folder, {"train": [1]}, {"steps": 0})

    def die(path: Path, to: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        record_ledger(folder, {"train": [1]}, {"steps": 10})
    assert json.loads((folder / "ledger.json").read_text()) == {"train": [1], "training": {"steps": 0}}
