"""A space is checked against the recipe's schema, key by key, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_sweep
import yaml

from llmtrain.tune.sweep.space import check_space, grid_of
from llmtrain.tune.sweep.target import Target, load_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target([str(tiny_sweep.write_inputs(tmp_path_factory.mktemp("given")))], None)


def dimensions(text: str, target: Target, metric: str = "eval_loss") -> list[Any]:
    return check_space(yaml.safe_load(text), target, metric, "space.yaml")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optim.lr: {log: [1e-5, 1e-3]}", [1e-5, 1e-4, 1e-3]),
        ("optim.warmup_steps: {range: [0, 2]}", [0, 1, 2]),
        ("adapter.dropout: {range: [0, 0.2], step: 0.05}", [0.0, 0.05, 0.1, 0.15, 0.2]),
        ("adapter.rank: {log: [4, 64], points: 5}", [4, 8, 16, 32, 64]),
        ("optim.lr: [1e-4, 3e-4]", [1e-4, 3e-4]),
        ("optim.warmup_steps: [null, 1]", [None, 1]),
        ("adapter.target: [all-linear, [q_proj, v_proj]]", ["all-linear", ["q_proj", "v_proj"]]),
        ("data.train: [a.jsonl, [b.jsonl, c.jsonl]]", ["a.jsonl", ["b.jsonl", "c.jsonl"]]),
    ],
)
def test_the_values_of_a_grid(target: Target, text: str, values: list[Any]) -> None:
    (dimension,) = dimensions(text, target)
    assert dimension.grid() == pytest.approx(values) if isinstance(values[0], float) else dimension.grid() == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lrr: [1, 2]", "unknown key optim.lrr: the nearest is optim.lr"),
        ("optim: {lr: [1]}", "optim is a section: name a key of it with dots"),
        ("optim.lr: [a, b]", "optim.lr='a': input should be a valid number"),
        ("optim.lr: {log: [0, 1]}", "optim.lr=0: input should be greater than 0; it takes float"),
        ("optim.lr: {log: [1e-3, 1e-5]}", "ends before it starts"),
        ("optim.lr: {log: [1e-3]}", "log takes two numbers, [low, high], not [1e-3]"),
        ("optim.lr: {lgo: [1, 2]}", "optim.lr: unknown lgo: the nearest is log"),
        ("optim.lr: {log: [1e-4, 1e-3], step: 1e-4}", "is for `range` only"),
        ("optim.lr: 3", "give a list of choices, {log: [low, high]} or {range: [low, high]}, not 3"),
        ("optim.lr: []", "the list of choices is empty"),
        ("optim.lr: [1e-3, 0.001]", "has a choice twice"),
        ("optim.schedule: {log: [1, 2]}", "'wsd'|'cosine'|'linear'|'constant', which has no range"),
        ("adapter.rank: {range: [1.5, 8]}", "adapter.rank=1.5: input should be a valid integer; it takes int"),
        ("adapter.dropout: {range: [0, 0]}", "nothing varies in it"),
        ("{}", "nothing varies in it"),
        ("optim.lr: [1e-3]", "nothing varies in it"),
        ("run.dir: [a, b]", "run.dir may not vary: the sweep gives each run a separate folder"),
        ("run.seed: [0, 1]", "run.seed may not vary: a sweep repeats each setting over seeds with --seeds"),
        ("eval.tokens: [10, 20]", "eval.tokens may not vary: it changes what the held-out loss is measured on"),
        (
            "optim.muon_lr: {range: [0.01, 0.1], when: {optim.name: muon}}",
            "when names optim.name, which the space does",
        ),
        (
            "optim.name: [adamw, muon]\noptim.muon_lr: {range: [0.01, 0.1], when: {optim.name: mun}}",
            "when optim.name is mun, which is not one of its choices",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_is_allowed(target: Target, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        dimensions(text, target)
    assert str(error.value).startswith("space.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_with_a_condition_varies_only_where_it_holds(target: Target) -> None:
    space = dimensions(
        "optim.name: [adamw, muon]\noptim.muon_lr: {range: [0.01, 0.03], when: {optim.name: muon}}", target
    )
    assert list(grid_of(space)) == [
        {"optim.name": "adamw"},
        *({"optim.name": "muon", "optim.muon_lr": lr} for lr in (0.01, 0.02, 0.03)),
    ]


def test_a_key_that_changes_the_loss_itself_needs_another_metric(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(tmp_path, preference={"loss": "dpo"})
    target = load_target([str(config)], None)
    assert target.verb == "rlhf"
    with pytest.raises(ValueError, match=r"preference\.beta changes what eval_loss is.*--maximize eval_accuracy"):
        dimensions("preference.beta: [0.1, 0.2]", target)
    assert dimensions("preference.beta: [0.1, 0.2]", target, metric="eval_accuracy")


def test_a_configuration_that_fits_two_recipes_needs_its_recipe(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(tmp_path)
    tree = yaml.safe_load(config.read_text())
    del tree["adapter"]
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match="may be a configuration of pretrain or sft: say which, --recipe sft"):
        load_target([str(config)], None)
    assert load_target([str(config)], "sft").verb == "sft"


def test_a_file_of_several_stages_is_refused(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(tmp_path, reward_stage={"reward": {}})
    with pytest.raises(ValueError, match="has several stages: tune one at a time"):
        load_target([str(config)], None)
