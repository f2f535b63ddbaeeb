"""recipes/rlhf.py's policy stage on a task whose optimum is known, from its command line to the model folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
import tiny_pairs
import torch
import yaml
from tiny_rl import NUM_LETTERS, optimum, write_config, write_task
from tiny_run import RLHF, Ended, command, environment, metrics, run_here
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmtrain.objectives import advantages as advantage
from llmtrain.train.checkpoint import Checkpoint

METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"advantage": "gae", "gae_lambda": 1.0},
    "grpo": {"advantage": "group_mean", "aggregation": "sequence_mean"},
    "rloo": {"advantage": "rloo"},
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


def ran(config: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides, recipe=RLHF)
    assert (ended.code, ended.err) == (0, "")
    return ended


def scores(folder: Path) -> list[float]:
    return [row["eval_score"] for row in metrics(folder / "run") if "eval_score" in row]


def trained(folder: Path, task: Path, method: str, seed: int) -> list[float]:
    """The held-out scores of a run, first to last."""
    ran(write_config(folder, task, policy={"kl_coef": 0.0} | METHODS[method], run={"seed": seed}))
    return scores(folder)


@pytest.mark.parametrize("method", ["ppo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_the_optimum_is_reached(task: Path, tmp_path: Path, method: str) -> None:
    first, *_, last = trained(tmp_path, task, method, seed=0)
    assert first <= 0.2 * optimum()
    assert last >= 0.95 * optimum()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", list(METHODS))
def test_the_optimum_is_reached_from_every_seed(task: Path, tmp_path: Path, method: str, seed: int) -> None:
    first, *_, last = trained(tmp_path, task, method, seed)
    assert first <= 0.2 * optimum() and last >= 0.95 * optimum()


@pytest.mark.slow
def test_with_its_sign_flipped_the_advantage_leads_away(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = advantage.ADVANTAGE_FUNCTIONS["rloo"]

    def flipped(*given: Any) -> advantage.Estimates:
        estimates = stock(*given)
        return advantage.Estimates(-estimates.advantages, estimates.returns)

    monkeypatch.setitem(advantage.ADVANTAGE_FUNCTIONS, "rloo", flipped)
    assert trained(tmp_path, task, "rloo", seed=0)[-1] <= 0.2 * optimum()


SLOW_FAMILY: list[dict[str, Any]] = [
    {"kl_coef": 0.05, "critic": "separate"},
    {"kl_coef": 0.05, "kl_target": 2.0, "kl_horizon": 1000},
    {
        "kl_coef": 0.05,
        "kl_placement": "loss",
        "kl_estimator": "k3",
        "advantage": "group_mean",
        "aggregation": "sequence_mean",
    },
    {"kl_coef": 0.0, "advantage": "dr_grpo", "aggregation": "constant_length", "entropy_coef": 0.001},
    {"kl_coef": 0.0, "advantage": "group_mean", "loss": "gspo", "aggregation": "sequence_mean", "clip_high": 0.01},
]


@pytest.mark.parametrize(
    "policy",
    [
        {"kl_coef": 0.0, "advantage": "reinforce_pp", "loss": "cispo", "clip_low": 1.0},
        *(pytest.param(policy, marks=pytest.mark.slow) for policy in SLOW_FAMILY),
    ],
)
def test_the_family_learns(task: Path, tmp_path: Path, policy: dict[str, Any]) -> None:
    ran(write_config(tmp_path, task, policy=policy, rollout={"num_prompts": 32}), "train.steps=60")
    first, *_, last = scores(tmp_path)
    assert last > first + 0.3


@pytest.mark.parametrize("critic", ["head", pytest.param("separate", marks=pytest.mark.soak)])
def test_an_adapter_moves_away_from_a_base_that_stays(task: Path, tmp_path: Path, critic: str) -> None:
    adapter = {"kind": "lora", "rank": 8, "alpha": 64}
    config = write_config(tmp_path, task, adapter=adapter, policy={"kl_coef": 0.001, "critic": critic})
    ended = ran(config, "train.steps=80", "optim.lr=0.02", "log.every=1")
    assert "reference on the same base" in ended.out
    rows = [row for row in metrics(tmp_path / "run") if "kl" in row]
    assert rows[0]["rollout_kl"] == 0.0 and rows[-1]["rollout_kl"] > 0.05
    names = Checkpoint(tmp_path / "run" / "checkpoints" / "step-00000080").names("model")
    assert names and all("lora_" in name or name.startswith("value_head.") for name in names)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder / "run") if "loss" in row]


def with_critic(folder: Path, task: Path) -> Path:
    """A run of four steps that logs each, with a critic of its own."""
    sections: dict[str, Any] = {"train": {"steps": 4}, "eval": {"every": None}, "log": {"every": 1, "report": False}}
    return write_config(folder, task, policy={"kl_coef": 0.05, "critic": "separate"}, **sections)


def test_checkpointed_activations_are_those_of_policy_and_critic_and_change_no_update(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, reached = PreTrainedModel.activation_checkpointing_enable, list[str]()

    def told(model: PreTrainedModel, *arguments: Any) -> None:
        reached.append(type(model).__name__)
        stock(model, *arguments)

    monkeypatch.setattr(PreTrainedModel, "activation_checkpointing_enable", told)
    ran(with_critic(tmp_path / "plain", task))
    ran(with_critic(tmp_path / "saving", task), "train.activation_checkpointing=true")
    assert losses(tmp_path / "saving") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert reached == ["LlamaForCausalLM", "LlamaModel"]


@pytest.mark.soak
def test_compiled_models_make_the_same_updates(task: Path, tmp_path: Path) -> None:
    ran(with_critic(tmp_path / "plain", task))
    line = command(with_critic(tmp_path / "compiled", task), "train.compile=true", recipe=RLHF)
    subprocess.run(line, check=True, capture_output=True, env=environment())  # type checks here stop the compiler
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)


def rollout_samples(run: Path) -> list[dict[str, Any]]:
    """The rows of `samples.jsonl` that rollouts wrote, not evaluations."""
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return [row for row in rows if "rollout" in row]


def test_the_folder_tells_of_samples_and_loads(task: Path, tmp_path: Path) -> None:
    ran(write_config(tmp_path, task, policy={"kl_coef": 0.05}), "train.steps=6")
    rows = rollout_samples(tmp_path / "run")
    assert [row["rollout"] for row in rows] == sorted([0, 1, 2] * 256)
    assert {"sample", "prompt", "response", "score", "kl", "stopped"} <= rows[0].keys()
    assert len({row["sample"] for row in rows}) == len(rows)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert torch.isfinite(model(torch.tensor([[4, 5]])).logits).all()


def test_each_of_several_rewards_has_an_account_of_its_own(task: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, task, log={"every": 1}, eval={"every": 2})
    alphabet = yaml.safe_load(config.read_text())["rollout"]["rewards"][0]
    length = {"name": "length", "weight": 0.5, "target": NUM_LETTERS, "unit": "words"}
    ran(config, f"rollout.rewards={json.dumps([alphabet, length])}", "train.steps=2")
    rows = rollout_samples(tmp_path / "run")
    for row in rows:
        assert row["score"] == pytest.approx(row["scores"][alphabet] + 0.5 * row["scores"]["length"], abs=1e-5)
    means = {name: sum(row["scores"][name] for row in rows) / len(rows) for name in (alphabet, "length")}
    step = next(row for row in metrics(tmp_path / "run") if "rollout_score" in row)
    assert {name: step[f"rollout_score/{name}"] for name in means} == pytest.approx(means, abs=1e-5)
    held_out = next(row for row in metrics(tmp_path / "run") if "eval_score" in row)
    total = held_out[f"eval_score/{alphabet}"] + 0.5 * held_out["eval_score/length"]
    assert held_out["eval_score"] == pytest.approx(total)


def test_a_kl_over_its_budget_ends_the_run(task: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, task, policy={"kl_coef": 0.001, "kl_budget": 0.5}, log={"every": 1})
    ended = ran(config)
    assert "exceeds policy.kl_budget=0.5: the run ends here" in ended.out
    assert metrics(tmp_path / "run")[-1]["step"] < 160
    assert "this run is finished" in ran(config).out  # and stays ended


@pytest.mark.slow
def test_groups_without_a_signal_are_left_out(task: Path, tmp_path: Path) -> None:
    policy = {"kl_coef": 0.0, "advantage": "group_mean", "aggregation": "sequence_mean"}
    config = write_config(tmp_path, task, policy=policy, rollout={"dynamic_sampling": True}, log={"every": 1})
    ran(config, "train.steps=60")
    rows = [row for row in metrics(tmp_path / "run") if "rollout_zero_variance_groups" in row]
    assert 0 < rows[-1]["rollout_zero_variance_groups"] < 1
    assert scores(tmp_path)[-1] > 0.5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"policy": {"advantage": "rloo"}, "rollout": {"samples_per_prompt": 1}}, "compares samples of a prompt"),
        ({"policy": {"kl_coef": 0.1, "kl_placement": "loss"}}, "trains nothing"),
        ({"policy": {"kl_coef": 0.0, "kl_target": 1.0}}, "policy.kl_target does nothing without policy.kl_coef"),
        (
            {"policy": {"kl_coef": 0.1, "kl_placement": "loss", "kl_estimator": "k3", "kl_target": 1.0}},
            "a KL in the reward: remove",
        ),
        (
            {"policy": {"kl_coef": 0.1, "kl_target": 1.0, "kl_horizon": 51}},
            "kl_horizon=51 is too short for rollouts",
        ),
        ({"policy": {"kl_coef": 0.1, "advantage": "group_mean"}}, "divides by the standard deviation of a group"),
        ({"policy": {"loss": "gspo"}}, "policy.loss=gspo takes one advantage per response"),
        ({"policy": {"loss": "reinforce"}}, "does not correct for earlier steps of a rollout"),
        ({"model": {"dropout": 0.1}}, "model.dropout: the policy is trained as it answers, without dropout"),
        ({"eval": {"tokens": 100}}, "eval.tokens does nothing without stored tokens"),
        ({"rollout": {"rewards": ["no_such_reward"]}}, "no reward 'no_such_reward'"),
        ({"rollout": {"max_new_tokens": 16}}, "leaves no room for a prompt"),
        ({"train": {"steps": None, "epochs": 1}}, "train.epochs has no meaning"),
        ({"rollout": {"overlong_buffer_tokens": 5}}, "overlong_buffer_tokens=5 is more than rollout.max_new_tokens=4"),
        (
            {"rollout": {"overlong_penalty": 2.0}},
            "overlong_penalty does nothing without rollout.overlong_buffer_tokens",
        ),
        ({"rollout": {"minibatches": 65}}, "rollout.minibatches=65 is more than rollout.num_prompts=64"),
        ({"rollout": {"on_weak_reward": "refuse"}}, "on_weak_reward does nothing without a reward of the name model"),
        ({"policy": {"critic_init": "reward"}}, "rollout.rewards names 0 reward models: name one"),
        ({"policy": {"critic_init": "no/such/folder"}}, "policy.critic_init=no/such/folder: no such folder"),
        ({"reward": {}}, "reward and policy are sections of different stages: put what each needs under reward_stage"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    task: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    ended = run_here(write_config(tmp_path, task, **sections), recipe=RLHF)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended.err


def test_a_reward_that_fails_is_told_with_its_sample(task: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def bad(prompts, responses, rows):\n    return [float('nan')] * len(prompts)\n")
    config = write_config(tmp_path, task, rollout={"rewards": [f"{tmp_path}/bad.py:bad"]})
    ended = run_here(config, recipe=RLHF)
    assert ended.code == 2 and "sample 0" in ended.err, ended.err


def test_responses_are_as_long_as_asked(task: Path, tmp_path: Path) -> None:
    ran(write_config(tmp_path, task), "train.steps=2")
    row = metrics(tmp_path / "run")[-2]
    assert 0 < row["rollout_response_tokens"] <= NUM_LETTERS


@pytest.mark.slow
def test_a_trained_reward_model_raises_its_own_score(tmp_path: Path) -> None:
    """Reward model first, with an adapter, on pairs that prefer the letters of GOOD; then PPO on it."""
    base = tiny_chat.write_model(tmp_path / "base")
    rows = tiny_pairs.write_pairs(tmp_path / "pairs.jsonl", seed=1)
    shared = {"model": {"path": str(base)}}
    reward = tmp_path / "reward.yaml"
    reward.write_text(
        yaml.safe_dump(
            shared
            | {
                "run": {"dir": str(tmp_path / "reward")},
                "reward": {},
                "adapter": {"kind": "lora", "rank": 8, "alpha": 32},
                "data": {"train": str(rows), "max_seq_len": 256, "cache_dir": str(tmp_path / "cache")},
                "train": {"steps": 20, "global_batch_tokens": 1024, "microbatch_tokens": 1024},
                "optim": {"lr": 0.01},
                "log": {"report": False},
            }
        )
    )
    ran(reward)
    config = write_config(
        tmp_path / "ppo",
        tmp_path,
        **shared,
        data={"train": str(rows), "eval": None, "eval_fraction": 0.2, "chat_template": "auto", "max_seq_len": 128},
        rollout={"rewards": [{"name": "model", "path": str(tmp_path / "reward")}], "max_new_tokens": 8},
        policy={"kl_coef": 0.001},
    )
    ran(config, "train.steps=80")
    first, *_, last = scores(tmp_path / "ppo")
    assert last > first + 0.3
