"""Several stages from one file, in turn: each is a run of its own, in a folder of its own under `run.dir`.

    run: {dir: runs/hh}                     # runs/hh/reward, runs/hh/policy
    model: {path: ...}                      # what stands beside the stages, all of them have
    reward_stage: {data: ..., reward: ...}  # what a stage says itself comes before that
    policy_stage: {data: ..., policy: ..., rollout: {rewards: [{name: model}]}}

A stage that is finished is skipped, so the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmtrain.config.load import validate
from llmtrain.config.recipes import RecipeConfig
from llmtrain.config.rl import is_reward_model
from llmtrain.runs.folder import is_finished

SUFFIX = "_stage"


class RunStage(Protocol):
    """Runs a stage; `last`: no other follows in this process."""

    def __call__(self, config: Any, *, last: bool = True) -> None: ...


@dataclass(frozen=True)
class Stage:
    """What a section of its name asks for."""

    schema: type[RecipeConfig]
    run: RunStage


def stages_of(sections: set[str], stages: Mapping[str, Stage]) -> list[str]:
    """The stages that a file of several has, in the order in which they run."""
    return [name for name in stages if f"{name}{SUFFIX}" in sections]


def stage_configs(tree: Mapping[str, Any], stages: Mapping[str, Stage]) -> dict[str, RecipeConfig]:
    """The configuration of each stage of a file, in order.

    Raises ValueError that names the stage, before any of them runs.
    """
    names = stages_of(set(tree), stages)
    if not names:
        asked = [name for name in stages if name in tree]
        mend = " and ".join(f"{name}{SUFFIX}" for name in asked)
        raise ValueError(f"{' and '.join(asked)} are sections of different stages: put what each needs under {mend}")
    shared = {key: value for key, value in tree.items() if key.removesuffix(SUFFIX) not in names}
    configs: dict[str, RecipeConfig] = {}
    for name in names:
        own = tree[f"{name}{SUFFIX}"] or {}
        if not isinstance(own, dict):
            raise ValueError(f"{name}{SUFFIX}: holds no sections")
        whole = _merged(shared, own)
        run, own_run = whole.get("run"), own.get("run")
        if isinstance(run, dict) and "dir" in run and not (isinstance(own_run, dict) and "dir" in own_run):
            whole["run"] = run | {"dir": str(Path(str(run["dir"])) / name)}
        if "reward" in configs:
            whole = _with_reward(whole, configs["reward"].run.dir)
        try:
            configs[name] = validate(stages[name].schema, whole)
        except ValueError as error:
            raise ValueError(f"{name}{SUFFIX}: {error}") from None
    return configs


def run_stages(configs: Mapping[str, RecipeConfig], stages: Mapping[str, Stage], say: Callable[[str], None]) -> None:
    """Run the stages that are not finished, in order, up to one that is interrupted."""
    pending = [name for name, config in configs.items() if not is_finished(Path(config.run.dir), config)]
    for name, config in configs.items():
        folder = config.run.dir
        if name not in pending:
            began_anew = pending and list(configs).index(pending[0]) < list(configs).index(name)
            mend = f", with what an earlier stage was then: remove {folder} to run it again" if began_anew else ""
            say(f"{name} stage: finished in {folder}, skipped{mend}")
            continue
        say(f"{name} stage: runs in {folder}")
        with _signals_as_they_were():
            stages[name].run(config, last=name == pending[-1])
        gc.collect()  # cycles hold the models of a stage
        if not is_finished(Path(folder), config):
            return


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Put back what a stage listens to: until the next one does, a signal ends the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and keys of both; where both have one, a section is merged and of a key the own one is taken."""
    merged = dict(shared)
    for key, value in own.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _with_reward(tree: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A policy's sections where rewards of the name `model` without a path are the model of the reward stage."""
    rollout = tree.get("rollout")
    if not isinstance(rollout, dict) or not isinstance(rollout.get("rewards"), Sequence):
        return dict(tree)
    rewards = [
        {"path": folder, **spec} if is_reward_model(spec) else spec
        for spec in ({"name": "model"} if given == "model" else given for given in rollout["rewards"])
    ]
    return {**tree, "rollout": {**rollout, "rewards": rewards}}
