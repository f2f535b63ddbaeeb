"""Several stages from one file, in turn: each is a separate run, in its own folder under `run.dir`.

    run: {dir: runs/hh}                     # runs/hh/reward, runs/hh/policy
    model: {path: ...}                      # top-level sections are shared by all stages
    reward_stage: {data: ..., reward: ...}  # a stage's own sections override them
    policy_stage: {data: ..., policy: ..., rollout: {rewards: [{name: model}]}}

A finished stage is skipped, so the same command continues wherever it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.load import Given, config_of, read_given, validate
from llmtrain.config.recipes import RecipeConfig
from llmtrain.config.rl import is_reward_model
from llmtrain.config.which import STAGE_SUFFIX, STAGES, fitting_recipes


@dataclass(frozen=True)
class Stages:
    """The configuration of each stage that a file asks for, in the order in which they run."""

    configs: dict[str, RecipeConfig]
    in_turn: bool  # a file of stages, each with a folder of its own; else one run


def load_stages(argv: Sequence[str]) -> Stages:
    """Read `CONFIG.yaml [key=value ...]` into the configuration of each stage that it asks for.

    Raises ValueError naming the file and line, the key, or the stage.
    """
    return stages_of(read_given(argv, "rlhf"))


def stages_of(given: Given) -> Stages:
    """The configuration of each stage that a command line gives. Raises ValueError as `load_stages` does."""
    tree = given.tree
    asked = [name for name in STAGES if name in tree]
    if len(asked) == 1 and not _names_in_turn(tree):
        return Stages({asked[0]: config_of(STAGES[asked[0]], given)}, in_turn=False)
    if not asked and not _names_in_turn(tree):
        others = " or ".join(fitting_recipes(tree, tree))
        instead = f": it is a configuration of {others}" if others else ""
        raise ValueError(f"{given.path} has none of the sections {', '.join(STAGES)}, which rlhf needs{instead}")
    return Stages(stage_configs(tree), in_turn=True)


def is_in_turn(tree: Mapping[str, Any]) -> bool:
    """Whether a file has several stages, each a run with a folder."""
    return bool(_names_in_turn(tree))


def schema_of(tree: Mapping[str, Any]) -> type[RecipeConfig]:
    """The schema of the first stage that a tree asks for; the first of all if it asks for none."""
    return next((schema for name, schema in STAGES.items() if name in tree), next(iter(STAGES.values())))


def stage_configs(tree: Mapping[str, Any]) -> dict[str, RecipeConfig]:
    """The configuration of each stage of a file of several, in order.

    Raises ValueError that names the stage, before any of them runs.
    """
    names = _names_in_turn(tree)
    if not names:
        asked = [name for name in STAGES if name in tree]
        fix = " and ".join(f"{name}{STAGE_SUFFIX}" for name in asked)
        raise ValueError(f"{' and '.join(asked)} are sections of different stages: put what each needs under {fix}")
    shared = {key: value for key, value in tree.items() if key.removesuffix(STAGE_SUFFIX) not in names}
    configs: dict[str, RecipeConfig] = {}
    for name in names:
        own = tree[f"{name}{STAGE_SUFFIX}"] or {}
        if not isinstance(own, dict):
            raise ValueError(f"{name}{STAGE_SUFFIX}: not a mapping of sections")
        whole = _merged(shared, own)
        run, own_run = whole.get("run"), own.get("run")
        if isinstance(run, dict) and "dir" in run and not (isinstance(own_run, dict) and "dir" in own_run):
            whole["run"] = run | {"dir": str(Path(str(run["dir"])) / name)}
        if "reward" in configs:
            whole = _with_reward(whole, configs["reward"].run.dir)
        try:
            configs[name] = validate(STAGES[name], whole)
        except ValueError as error:
            raise ValueError(f"{name}{STAGE_SUFFIX}: {error}") from None
    return configs


def _names_in_turn(tree: Mapping[str, Any]) -> list[str]:
    """The stages that a file of several has, in the order in which they run."""
    return [name for name in STAGES if f"{name}{STAGE_SUFFIX}" in tree]


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and keys of both; a section that both have is merged, and a key that both have is the stage's own."""
    merged = dict(shared)
    for key, value in own.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _with_reward(tree: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A policy's sections, in which a reward `model` without a path is the model of the reward stage in `folder`."""
    rollout = tree.get("rollout")
    if not isinstance(rollout, dict) or not isinstance(rollout.get("rewards"), Sequence):
        return dict(tree)
    rewards = [
        {"path": folder, **spec} if is_reward_model(spec) else spec
        for spec in ({"name": "model"} if given == "model" else given for given in rollout["rewards"])
    ]
    return {**tree, "rollout": {**rollout, "rewards": rewards}}
