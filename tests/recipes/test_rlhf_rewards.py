"""Rewards in a run from its command line: what they may abstain from, log, fail at, and how that ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_rl import write_config, write_task
from tiny_run import RLHF, metrics, run_here

from llmtrain.models.folders import reward as reward_models
from tests.unit.models.test_critic_init import reward_folder

REWARDS = """
from tiny_rl import alphabet
calls = []

def abstains(completions, completion_ids, trainer_state, log_metric, log_extra, **kwargs):
    assert all(0 < len(ids) <= 4 for ids in completion_ids) and len(completion_ids) == len(completions)
    log_metric("steps", trainer_state.global_step)
    log_extra("number", list(range(len(completions))))
    return [None if number % 2 else 1.0 for number in range(len(completions))]

def fails_later(prompts, responses, rows):
    calls.append(1)
    if len(calls) > 2:
        raise OSError("the judge is away")
    return alphabet(prompts, responses, rows)

async def works(prompts, responses, rows):
    return alphabet(prompts, responses, rows)
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


def config(folder: Path, task: Path, *names: str, **rollout: Any) -> Path:
    file = folder / f"rewards_{folder.name}.py"
    file.write_text(f"import sys\nsys.path.append({str(Path(__file__).parents[1])!r})\n{REWARDS}")
    return write_config(
        folder,
        task,
        rollout={
            "rewards": [name if ":" not in name else f"{file}{name}" for name in names],
            "num_prompts": 4,
            "samples_per_prompt": 2,
            "ppo_epochs": 1,
            **rollout,
        },
        train={"steps": 6, "microbatch_tokens": 256},
        eval={"every": None},
        log={"every": 1, "report": False},
        model={"path": str(task / "model")},
    )


def test_abstentions_and_what_rewards_log_are_in_the_log(task: Path, tmp_path: Path) -> None:
    ended = run_here(config(tmp_path, task, ":abstains", ":works"), "data.eval=null", recipe=RLHF)
    assert (ended.code, ended.err) == (0, "")
    rows = [row for row in metrics(tmp_path / "run") if "rollout_score" in row]
    name = next(key for key in rows[0] if key.startswith("rollout_abstained/"))
    assert {row[name] for row in rows} == {0.5}
    assert {row[name.replace("abstained", "score")] for row in rows} == {1.0}
    assert [row["rollout_reward/steps"] for row in rows] == [0, 1, 2, 3, 4, 5]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["logged"]["number"] for sample in samples[:8]] == list(range(8))
    assert [sample["scores"][name.partition("/")[2]] for sample in samples[:4]] == [1.0, None, 1.0, None]


def test_a_failure_saves_and_stops_and_the_same_command_goes_on(task: Path, tmp_path: Path) -> None:
    path = config(tmp_path, task, ":fails_later")
    ended = run_here(path, "data.eval=null", recipe=RLHF)
    assert ended.code == 2
    assert "failed on sample" in ended.err and "OSError: the judge is away" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    file = tmp_path / f"rewards_{tmp_path.name}.py"
    again = run_here(path, "data.eval=null", "rollout.on_reward_error=abstain", recipe=RLHF)
    assert (again.code, again.err) == (0, ""), file
    assert "resumed at step 2" in again.out


def test_a_failure_is_counted_if_asked(task: Path, tmp_path: Path) -> None:
    path = config(tmp_path, task, ":fails_later", ":works", on_reward_error="abstain")
    ended = run_here(path, "data.eval=null", recipe=RLHF)
    assert (ended.code, ended.err) == (0, "")
    rows = [row for row in metrics(tmp_path / "run") if "rollout_score" in row]
    failed = [sum(value for key, value in row.items() if key.startswith("rollout_failed/")) for row in rows]
    assert failed == [0, 0, 1, 1, 1, 1]


def test_code_of_responses_is_run_in_the_sandbox_that_is_asked_for(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    from llmtrain.rewards import jail

    jail._bubblewrap.cache_clear()
    prompts = tmp_path / "code.jsonl"
    rows = [{"prompt": letter, "test_list": ["assert f(1)"]} for letter in "abcd"]
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    try:
        path = config(tmp_path, task, "code_tests", sandbox="require")
        given = ("data.eval=null", f"data.train={prompts}")
        refused = run_here(path, *given, recipe=RLHF)
        assert refused.code == 2 and "rollout.sandbox=require: no jail for code" in refused.err
        ended = run_here(path, *given, "rollout.sandbox=auto", "train.steps=1", recipe=RLHF)
        assert (ended.code, ended.err) == (0, "")
        assert "code_tests runs code in the program's own limits, which hold less than a jail" in ended.out
        row = next(row for row in metrics(tmp_path / "run") if "rollout_score" in row)
        assert row["rollout_reward/code_tests/error"] + row["rollout_reward/code_tests/wrong"] == 1.0
    finally:
        jail._bubblewrap.cache_clear()


@pytest.mark.parametrize("init", ["reward", "folder"])
def test_a_reward_model_that_a_critic_starts_as_is_opened_once(
    task: Path, tmp_path: Path, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = reward_folder(tmp_path / "scorer", task / "model", {"kind": "lora", "rank": 4, "alpha": 8})
    opened: list[Path] = []
    check = reward_models.require_readable
    monkeypatch.setattr(reward_models, "require_readable", lambda folder: (opened.append(folder), check(folder)))
    given = [{"name": "model", "path": str(scorer)}] if init == "reward" else ["json_valid"]
    ended = run_here(
        config(tmp_path, task, ":works", rewards=given),
        "train.steps=1",
        "data.eval=null",
        f"policy.critic_init={init if init == 'reward' else scorer}",
        "policy.critic=separate",
        recipe=RLHF,
    )
    assert ended.code == 0, ended.err
    assert opened == [scorer]
