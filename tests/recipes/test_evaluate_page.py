"""docs/evaluate.md: its table lists every task, and the task that it adds runs as shown, to measure and to reward."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny_chat
import yaml
from tiny_run import RLHF, metrics, run_here

from llmtrain.cli.main import main
from llmtrain.config.sections import EvalConfig
from llmtrain.eval.tasks.measure import measures_of
from llmtrain.eval.tasks.results import read_evaluation
from llmtrain.rewards.batch import ScoreBatch
from llmtrain.rewards.load import load_rewards
from llmtrain.tasks.load import TASKS, reward_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, BIAS_PAGE = ((DOCS / name).read_text(encoding="utf-8") for name in ("evaluate.md", "bias.md"))
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_table_has_every_task_with_its_measures(name: str) -> None:
    (row,) = (cells for cells in ROWS if f"`{name}`" in cells[0])
    names = [measure.name for measure in measures_of(TASKS[name])]
    if "(bias.md)" in row[1]:  # a row for all four, whose measures are on their own page
        assert not [each for each in names if f"`{each}`" not in BIAS_PAGE]
    else:
        assert row[2].strip().split(", ") == names
    assert int(row[3]) == TASKS[name].shots


def test_the_configuration_that_is_shown_is_valid() -> None:
    during, reward, _ = map(yaml.safe_load, blocks("yaml"))
    assert EvalConfig.model_validate(during["eval"]).tasks
    (loaded,) = load_rewards(reward["rollout"]["rewards"], task_reward=reward_of)
    assert loaded.name == "task:gsm8k"


def test_the_task_that_is_shown_measures_and_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_chat.write_model(tmp_path / "model", spread=0.3)
    (tmp_path / "capitals.py").write_text(blocks("python")[0])
    (tmp_path / "capitals.jsonl").write_text(blocks("json")[0])
    main(["eval", str(model), "--tasks", "capitals.py=capitals.jsonl"])
    (result,) = read_evaluation(model / "evaluation.jsonl").tasks.values()
    assert result.task == "capitals" and len(result.items) == 2 and result.facts["shots"] == 1
    (reward,) = load_rewards(["task:capitals.py"], task_reward=reward_of)
    rows = [{"country": "Peru", "capital": "Lima"}] * 2
    assert reward.function(ScoreBatch(["?", "?"], ["It is Lima.", "Rome"], rows, [0, 1])) == [1.0, 0.0]


def test_the_task_that_is_shown_trains_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "capitals.py").write_text(blocks("python")[0])
    rows = [{"country": f"{letter}land", "capital": f"{letter} town"} for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    (tmp_path / "capitals.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shown = yaml.safe_load(blocks("yaml")[-1])
    shown["data"] |= {"eval_fraction": 0.2, "max_seq_len": 64}
    shown["rollout"] |= {"num_prompts": 2, "max_new_tokens": 4}
    shown["eval"] |= {"every": None, "before_after": 4}
    shown |= {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"path": str(tiny_chat.write_model(tmp_path / "model", spread=0.3))},
        "policy": {},
        "train": {"steps": 2, "microbatch_tokens": 256},
        "log": {"report": False},
    }
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(shown))
    ended = run_here(tmp_path / "ppo.yaml", recipe=RLHF)
    assert (ended.code, ended.err) == (0, "")
    assert any("eval_task/capitals/named" in row for row in metrics(tmp_path / "run"))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| mean reward of answers |" in card and "| capitals: named |" in card
