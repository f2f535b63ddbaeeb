"""The folder of a run: whose it is, what it records, and the model that is made from a checkpoint."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.config.load import validate
from llmtrain.config.recipes import PolicyStageConfig, PretrainConfig
from llmtrain.runs.facts import Facts
from llmtrain.runs.folder import check_folder, immaterial, may_change, record_ledger, record_run

MACHINE = {"device": "cpu"}
FACTS = Facts(
    base={"weights": "ab12", "configuration": {"rope_parameters": {"rope_theta": 10000.0}}},
    code=None,
    tokenizer={"vocabulary": "ab12"},
    data={"train": ["a-1", "b-2"], "eval": []},
    packing={"shared_prompts": None},
)


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
    record_run(tmp_path / "run", config, MACHINE, FACTS)
    return tmp_path / "run"


def test_looking_at_a_folder_makes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path / "deep" / "run")
    check_folder(config.run, config)
    assert list(tmp_path.iterdir()) == []


def test_what_was_asked_for_is_recorded_with_its_defaults(folder: Path) -> None:
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config_of(folder).model_dump()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["cpus"] == os.cpu_count()
    assert environment["device"] == "cpu" and environment["pinned"] == FACTS.to_dict()


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
        ({"data": {"train": [{"path": "b.txt", "weight": 2}]}}, "data.train[0].weight is None there and 2.0 here"),
        ({"train": {"global_batch_tokens": 32768}}, "train.global_batch_tokens is 65536 there and 32768 here"),
    ],
)
def test_another_run_is_told_by_its_first_difference(folder: Path, sections: dict[str, Any], told: str) -> None:
    config = config_of(folder, **sections)
    with pytest.raises(ValueError, match="holds another run") as caught:
        check_folder(config.run, config)
    assert f"({told}" in str(caught.value)


def test_what_may_change_is_marked_in_the_schemas() -> None:
    of_finished = {"run.dir", "run.resume", "run.push_to_hub", "run.timeout_minutes", "data.cache_dir", "log"}
    changed = {f"train.{name}" for name in ("steps", "epochs", "microbatch_tokens", "compile", "spike_factor")}
    changed |= {"train.activation_checkpointing", "train.max_nonfinite_steps", "eval.every", "eval.patience"}
    changed |= {f"eval.{name}" for name in ("samples", "sample_tokens", "tasks", "task_data", "task_items")}
    changed |= {"eval.task_chat", "eval.before_after", "eval.general_text"}
    assert set(immaterial(PolicyStageConfig)) == of_finished
    by_content = {f"{key}.{name}" for key in ("model", "tokenizer") for name in ("path", "revision")}
    by_content |= {f"data.{split}[].{name}" for split in ("train", "eval") for name in ("path", "revision")}
    by_content |= {"data.chat_template", "rollout.rewards", "policy.critic_init"}
    changed |= {"checkpoint", "policy.kl_budget"}
    changed |= {f"rollout.{name}" for name in ("sandbox", "reward_seconds", "reward_retries", "on_reward_error")}
    assert set(may_change(PolicyStageConfig)) == of_finished | changed | by_content


def test_a_run_that_must_be_new_is_not_resumed(folder: Path) -> None:
    config = config_of(folder, run={"resume": "never"})
    with pytest.raises(ValueError, match=r"run\.resume is never"):
        check_folder(config.run, config)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"base": {"weights": "cd34"}},
            r"the base model changed .*base.weights was 'ab12' and is 'cd34' now.*\(model.path\)",
        ),
        (
            {"base": FACTS.base | {"configuration": {"rope_parameters": {"rope_theta": 5.0}}}},
            "base.configuration.rope_parameters.rope_theta was 10000.0 and is 5.0 now",
        ),
        (
            {"data": {"train": ["a-1", "c-3"], "eval": []}},
            r"the data changed .*data.train\[1\] was 'b-2' and is 'c-3' now",
        ),
        ({"data": {"train": ["a-1"], "eval": []}}, r"data.train was \['a-1', 'b-2'\] and is \['a-1'\] now"),
        ({"rewards": []}, "a reward changed .*rewards was None"),
    ],
)
def test_a_run_whose_inputs_changed_does_not_go_on(folder: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        record_run(folder, config_of(folder), MACHINE, replace(FACTS, **changed))


def test_what_a_run_runs_on_may_change(folder: Path) -> None:
    record_run(folder, config_of(folder), {"device": "cuda"}, FACTS)
    assert json.loads((folder / "environment.json").read_text())["device"] == "cuda"


@pytest.mark.parametrize("content", [b"", b'{"pinned": {"for', b"[]", b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_file_of_the_run_that_cannot_be_read_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    config = config_of(folder)

    def resume() -> None:
        check_folder(config.run, config)
        record_run(folder, config, MACHINE, FACTS)

    with pytest.raises(ValueError, match=rf"{folder}/{name}.*bring it back from a copy, or start another") as caught:
        resume()
    assert "\n" not in str(caught.value)


def test_a_configuration_that_was_cut_at_a_line_is_not_taken_for_another_run(folder: Path) -> None:
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    config = config_of(folder)
    for length in range(1, len(lines)):
        (folder / "config.yaml").write_text("".join(lines[:length]))
        with pytest.raises(ValueError, match="was cut off") as caught:
            check_folder(config.run, config)
        assert "remove" not in str(caught.value)


def test_checkpoints_of_which_nothing_says_what_they_started_with_are_refused(folder: Path) -> None:
    (folder / "environment.json").unlink()
    (folder / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"environment\.json cannot be read"):
        record_run(folder, config_of(folder), MACHINE, FACTS)


def test_a_start_that_was_killed_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path / "run")

    def die(path: Path, to: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            record_run(tmp_path / "run", config, MACHINE, FACTS)
    check_folder(config.run, config)
    record_run(tmp_path / "run", config, MACHINE, FACTS)
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
