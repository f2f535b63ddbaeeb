"""recipes/rlhf.py with both stages in one file: reward model, then a policy that starts its critic from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import RLHF, Ended, metrics, run_here
from tiny_stages import write_config, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def ran(config: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides, recipe=RLHF)
    assert (ended.code, ended.err) == (0, "")
    return ended


def test_both_stages_run_from_one_file_and_a_second_start_skips_them(inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs)
    first = ran(config)
    reward, policy = tmp_path / "run" / "reward", tmp_path / "run" / "policy"
    assert first.out.index("the reward model beats chance") < first.out.index(f"policy stage: runs in {policy}")
    assert f"the critic and its trunk start as the reward model {reward}" in first.out
    assert (reward / "model").is_dir() and (policy / "model").is_dir()
    row = next(row for row in metrics(policy) if "rollout_score" in row)
    assert row["rollout_logprob_difference_max"] < 1e-3
    again = ran(config)
    assert again.out.splitlines() == [
        f"reward stage: finished in {reward}, skipped",
        f"policy stage: finished in {policy}, skipped",
    ]


def test_a_stage_that_ended_early_goes_on_from_where_it_was(inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs)
    ran(config, "policy_stage.train.steps=2", "policy_stage.optim.schedule=constant")
    more = ran(config, "policy_stage.train.steps=4", "policy_stage.optim.schedule=constant")
    assert more.out.startswith("reward stage: finished in") and "resumed at step 2" in more.out


def test_a_fault_of_the_second_stage_is_told_before_the_first_runs(inputs: Path, tmp_path: Path) -> None:
    ended = run_here(write_config(tmp_path, inputs, policy={"kl_coef": -1.0}), recipe=RLHF)
    assert ended.code == 2 and ended.err.startswith("error: policy_stage: policy.kl_coef=-1.0"), ended.err
    assert not (tmp_path / "run").exists()
