"""`llmtrain export`: any checkpoint of a run of any recipe, as the run itself would have exported it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tiny_chat import write_model, write_rows
from tiny_pairs import write_pairs
from tiny_run import MODEL, PRETRAIN, RLHF, SFT, metrics, run_here, start, write_corpus

from llmtrain.cli.main import main
from llmtrain.models.folders.open import open_model
from llmtrain.models.folders.reward import load_reward_model
from llmtrain.train.checkpoint import Checkpoint

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}
RUNS: dict[str, tuple[Path, str, dict[str, Any]]] = {
    "pretrain": (PRETRAIN, "corpus", {}),
    "pretrain with an average": (PRETRAIN, "corpus", {"train": {"ema_decay": 0.5}}),
    "pretrain a new model": (PRETRAIN, "corpus", {"model": {"path": None, "config": MODEL}}),
    "sft": (SFT, "rows", {}),
    "sft of an adapter": (SFT, "rows", LORA),
    "sft of an adapter and new tokens": (SFT, "rows", LORA | {"model": {"path": "plain"}}),
    "reward": (RLHF, "pairs", {"reward": {}}),
    "reward adapter": (RLHF, "pairs", {"reward": {}} | LORA),
    "preference": (RLHF, "pairs", {"preference": {}} | LORA),
    "policy": (RLHF, "pairs", {"policy": {"critic": "separate"}}),
}
OF_EACH_RECIPE = ("pretrain", "sft", "reward", "preference", "policy")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "base", spread=0.1)
    write_model(folder / "plain", chat=False, spread=0.1)
    write_corpus(folder / "corpus.jsonl", seed=1)
    write_rows(folder / "rows.jsonl", seed=1)
    write_pairs(folder / "pairs.jsonl", seed=1)
    return folder


def config_of(folder: Path, inputs: Path, data: str, sections: dict[str, Any], steps: int = 2) -> Path:
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(inputs / "base")},
        "tokenizer": {"path": None},
        "data": {"train": str(inputs / f"{data}.jsonl"), "max_seq_len": 128, "cache_dir": str(inputs / "cache")},
        "train": {"steps": steps, "global_batch_tokens": 256, "microbatch_tokens": 256},
        "eval": {"every": 1},
        "checkpoint": {"every": 1, "keep": 5},
        "log": {"report": False},
    }
    tree["data"]["eval_fraction"] = 0.2
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    if tree["model"]["path"] is None:
        tree["tokenizer"]["path"] = str(inputs / "base")
    elif tree["model"]["path"] == "plain":
        tree["model"]["path"] = str(inputs / "plain")
    if "policy" in tree:
        del tree["train"]["global_batch_tokens"]
        rewards = [{"name": "length", "target": 3, "unit": "words"}]
        tree["rollout"] = {
            "rewards": rewards,
            "num_prompts": 4,
            "max_new_tokens": 4,
            "ppo_epochs": 1,
            "eval_prompts": 4,
        }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, both kept."""
    folder = tmp_path_factory.mktemp("finished")
    ended = run_here(config_of(folder, inputs, "rows", {}), recipe=SFT)
    assert ended.code == 0, ended.err
    return folder / "run"


def export(*arguments: object) -> None:
    main(["export", *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak if name == "sft of an adapter" else ()) for name in RUNS]
)
def test_the_last_checkpoint_exports_as_the_run_does(inputs: Path, tmp_path: Path, name: str) -> None:
    script, data, sections = RUNS[name]
    ended = run_here(config_of(tmp_path, inputs, data, sections), recipe=script)
    assert ended.code == 0, ended.err
    folder = tmp_path / "run"
    own, card = folder / "model", folder / "reward_card.json"
    of_run = files(own)
    written = of_run | ({"reward_card.json": card.read_bytes()} if card.exists() else {})
    shutil.rmtree(folder / "model")
    (folder / "finished.yaml").unlink()
    export(folder, "--output", tmp_path / "out" / "model")
    assert files(tmp_path / "out" / "model") == written
    export(folder)
    assert files(folder / "model") == of_run
    export(folder, "--step", 1, "--output", tmp_path / "first")
    weights = next(iter((tmp_path / "first").glob("*.safetensors"))).name
    assert load_file(tmp_path / "first" / weights).keys() == load_file(own / weights).keys()
    assert (tmp_path / "first" / weights).read_bytes() != (own / weights).read_bytes()
    if "reward" in sections:
        load_reward_model(tmp_path / "first")
    else:
        open_model(str(tmp_path / "first"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OF_EACH_RECIPE else pytest.mark.soak) for name in RUNS]
)
def test_a_run_with_held_out_sources_exports_and_runs_again_from_its_own_configuration(
    inputs: Path, tmp_path: Path, name: str
) -> None:
    script, data, sections = RUNS[name]
    config = config_of(tmp_path, inputs, data, sections)
    tree = yaml.safe_load(config.read_text())
    tree["data"] = {key: value for key, value in tree["data"].items() if key != "eval_fraction"}
    {"corpus": write_corpus, "rows": write_rows, "pairs": write_pairs}[data](tmp_path / "other.jsonl", seed=2)
    tree["data"]["eval"] = str(tmp_path / "other.jsonl")
    config.write_text(yaml.safe_dump(tree))
    assert run_here(config, recipe=script).code == 0
    export(tmp_path / "run", "--output", tmp_path / "out")
    again = run_here(tmp_path / "run" / "config.yaml", recipe=script)
    assert again.code == 0, again.err


def test_an_earlier_step_has_the_weights_of_its_checkpoint(finished: Path, tmp_path: Path) -> None:
    export(finished, "--step", "1", "--output", tmp_path / "first")
    exported = load_file(tmp_path / "first" / "model.safetensors")
    saved = Checkpoint(finished / "checkpoints" / "step-00000001").read_all("model")
    assert all(saved[f"model.{name}"].equal(weight) for name, weight in exported.items())
    training = json.loads((tmp_path / "first" / "training.json").read_text())["ledger"]["training"]
    assert training["steps"] == 1 and "steps_planned" not in training


def test_a_run_that_was_killed_exports_without_its_base(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(inputs / "base", tmp_path / "base")
    config = config_of(tmp_path, inputs, "rows", {"model": {"path": str(tmp_path / "base")}}, steps=100000)
    run = start(config, "eval.every=null", recipe=SFT)
    folder = tmp_path / "run"
    assert run.wait_until(lambda: (folder / "checkpoints" / "step-00000003").is_dir()), run.wait()
    with pytest.raises(SystemExit):
        export(folder)  # it runs still
    assert f"{folder} is in use by process" in capsys.readouterr().err
    run.kill()
    shutil.rmtree(tmp_path / "base")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    export(folder)
    model, _ = open_model(str(folder))
    assert model.num_parameters() > 0 and metrics(folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{run}", "--step", "7"), "no checkpoint 7: {run}/checkpoints holds the steps 0, 1, 2"),
        (("{run}", "--step", "first"), "step 'first': give a number, latest or best"),
        (("{run}", "--step", "best"), "holds the steps 0, 1, 2, of which none was kept as the best"),
        (("{run}/checkpoints",), "not a run's folder: it has no config.yaml"),
        (("{run}", "--output", "{run}/checkpoints"), "exists already: name another folder with --output"),
    ],
)
def test_what_cannot_be_exported_is_named(
    finished: Path, tmp_path: Path, arguments: tuple[str, ...], said: str, capsys: Any
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "model")
    with pytest.raises(SystemExit) as ended:
        export(*(argument.format(run=folder) for argument in arguments))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said.format(run=folder).replace("0, 1", "1") in err.replace("0, 1", "1"), err
    assert err.count("\n") == 1 and not (folder / "model").exists()


TORN: dict[str, bytes] = {"cut": b'{"for', "empty": b"", "zeros": b"\0" * 64}


@pytest.mark.parametrize("content", TORN)
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "ledger.json", "outline/outline.json", "outline/config.json", "outline/tokenizer.json"]
    + [f"checkpoints/step-00000002/{name}" for name in ("manifest.json", "state.json", "model-00001.safetensors")],
)
def test_a_file_that_cannot_be_read_is_named(
    finished: Path, tmp_path: Path, name: str, content: str, capsys: Any
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "model")
    (folder / name).write_bytes(TORN[content])
    with pytest.raises(SystemExit) as ended:
        export(folder)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1, err
    assert str((folder / name).parent if name.startswith(("outline", "check")) else folder / name) in err
