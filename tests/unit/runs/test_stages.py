"""Several stages from one file: what they share, where they go, and which of them run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.recipes import PolicyStageConfig, RecipeConfig, RewardStageConfig
from llmtrain.config.stages import stage_configs
from llmtrain.runs.folder import mark_finished
from llmtrain.runs.stages import run_stages
from llmtrain.system.stop_signal import Stopped

STAGES = ("reward", "policy")


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    shared = {
        "run": {"dir": str(folder / "hh"), "seed": 5},
        "model": {"path": "base"},
        "adapter": {"kind": "lora", "rank": 8},
        "train": {"microbatch_tokens": 2048},
        "reward_stage": {"data": {"train": "pairs.jsonl"}, "reward": {}, "train": {"epochs": 1}},
        "policy_stage": {
            "data": {"train": "prompts.jsonl"},
            "policy": {"kl_coef": 0.02},
            "rollout": {"rewards": [{"name": "model", "weight": 2.0}, "json_valid"]},
            "train": {"steps": 10},
            "adapter": {"rank": 16},
        },
    }
    return shared | changes


def test_what_stands_beside_the_stages_is_theirs_unless_they_say_otherwise(tmp_path: Path) -> None:
    configs = stage_configs(tree(tmp_path))
    reward, policy = configs["reward"], configs["policy"]
    assert isinstance(reward, RewardStageConfig) and isinstance(policy, PolicyStageConfig)
    assert (reward.run.seed, policy.run.seed) == (5, 5)
    assert (reward.adapter.rank, policy.adapter.rank) == (8, 16) and policy.adapter.kind == "lora"
    assert (reward.train.epochs, policy.train.steps, policy.train.microbatch_tokens) == (1, 10, 2048)


def test_each_stage_has_a_folder_and_the_policy_takes_the_reward_model_of_the_other(tmp_path: Path) -> None:
    configs = stage_configs(tree(tmp_path))
    assert [config.run.dir for config in configs.values()] == [str(tmp_path / "hh" / name) for name in STAGES]
    assert isinstance(configs["policy"], PolicyStageConfig)
    model = {"name": "model", "weight": 2.0, "path": str(tmp_path / "hh" / "reward")}
    assert configs["policy"].rollout.rewards == [model, "json_valid"]


def test_a_folder_and_a_reward_model_that_are_named_stay(tmp_path: Path) -> None:
    given = tree(tmp_path)
    given["policy_stage"] |= {"run": {"dir": "elsewhere"}, "rollout": {"rewards": [{"name": "model", "path": "mine"}]}}
    policy = stage_configs(given)["policy"]
    assert isinstance(policy, PolicyStageConfig)
    assert policy.run.dir == "elsewhere" and policy.rollout.rewards == [{"name": "model", "path": "mine"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_stage": {"rolout": {}}}, "policy_stage: .*unknown key rolout"),
        ({"reward_stage": 3}, "reward_stage: not a mapping of sections"),
        ({"run": {}}, "reward_stage: run.dir is missing"),
        (
            {"reward_stage": None, "policy_stage": None, "optim": {"lrr": 1}},
            "reward_stage: .*unknown key optim.lrr: the nearest is optim.lr",
        ),
    ],
)
def test_a_fault_is_told_with_its_stage(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage_configs(tree(tmp_path, **changes))


def test_sections_of_two_stages_in_one_are_refused() -> None:
    with pytest.raises(ValueError, match="put what each needs under reward_stage and policy_stage"):
        stage_configs({"reward": {}, "policy": {}})


class Ran:
    """Stages that note that they ran, and whether they were the last."""

    def __init__(self, interrupted: str = "") -> None:
        self.seen: list[tuple[str, bool]] = []
        self.said: list[str] = []
        self.runs = {name: self._runs(name, interrupted) for name in STAGES}

    def _runs(self, name: str, interrupted: str) -> Any:
        def run(config: RecipeConfig, *, last: bool = True) -> None:
            self.seen.append((name, last))
            folder = Path(config.run.dir)
            folder.mkdir(parents=True, exist_ok=True)
            if name == interrupted:
                raise Stopped
            mark_finished(folder, config)

        return run

    def __call__(self, given: dict[str, Any]) -> list[tuple[str, bool]]:
        run_stages(stage_configs(given), self.runs, self.said.append)
        return self.seen


def test_stages_run_in_turn_and_only_the_last_is_told_that_it_is(tmp_path: Path) -> None:
    assert Ran()(tree(tmp_path)) == [("reward", False), ("policy", True)]


def test_what_is_finished_is_skipped_and_said(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        Ran(interrupted="policy")(tree(tmp_path))
    again = Ran()
    assert again(tree(tmp_path)) == [("policy", True)]
    assert again.said[0] == f"reward stage: finished in {tmp_path / 'hh' / 'reward'}, skipped"
    assert Ran()(tree(tmp_path)) == []


def test_nothing_runs_after_a_stage_that_was_interrupted(tmp_path: Path) -> None:
    ran = Ran(interrupted="reward")
    with pytest.raises(Stopped):
        ran(tree(tmp_path))
    assert ran.seen == [("reward", False)]


def test_a_stage_that_is_asked_for_more_runs_on_and_the_next_is_told_to_be_older(tmp_path: Path) -> None:
    Ran()(tree(tmp_path))
    more = tree(tmp_path)
    more["reward_stage"]["train"]["epochs"] = 2
    again = Ran()
    assert again(more) == [("reward", True)]
    assert "trained on the earlier result of a stage that is run again: remove" in again.said[-1]


def test_what_changes_nothing_of_a_finished_run_does_not_start_it_again(tmp_path: Path) -> None:
    Ran()(tree(tmp_path))
    assert Ran()(tree(tmp_path, log={"every": 7})) == []


@pytest.mark.parametrize("spelling", ["{}/", "{}/.", "{}/../{}", "link"])
def test_a_finished_stage_is_the_same_by_any_spelling_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Ran()(tree(Path("runs")))
    (tmp_path / "link").symlink_to("runs")
    again = tree(Path("runs"))
    again["run"] = again["run"] | {"dir": f"{spelling.format('runs', 'runs')}/hh"}
    again["model"] = {"path": "./base"}
    again["policy_stage"]["data"]["train"] = str(tmp_path / "prompts.jsonl")
    assert Ran()(again) == []


@pytest.mark.parametrize("change", [{"path": "other"}, {"path": "sub/base"}])
def test_a_stage_with_another_base_is_not_finished(tmp_path: Path, change: dict[str, Any]) -> None:
    Ran()(tree(tmp_path))
    assert Ran()(tree(tmp_path, model=change)) == [("reward", False), ("policy", True)]


def test_a_mark_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    Ran()(tree(tmp_path))
    (tmp_path / "hh/reward/finished.yaml").write_text("")
    with pytest.raises(ValueError, match=r"hh/reward/finished.yaml: .*bring it back from a copy"):
        Ran()(tree(tmp_path))
