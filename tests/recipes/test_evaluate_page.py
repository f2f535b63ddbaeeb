"""docs/evaluate.md: its table lists every task, and the task that it adds runs as shown, to measure and to reward."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_chat
import yaml

from llmtrain.cli.main import main
from llmtrain.config.sections import EvalConfig
from llmtrain.eval.tasks.measure import measures_of
from llmtrain.eval.tasks.results import read_evaluation
from llmtrain.rewards.batch import ScoreBatch
from llmtrain.rewards.load import load_rewards
from llmtrain.tasks.load import TASKS, reward_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_table_has_every_task_with_its_measures(name: str) -> None:
    (row,) = (cells for cells in ROWS if f"`{name}`" in cells[0])
    assert row[2].strip().split(", ") == [measure.name for measure in measures_of(TASKS[name])]
    assert int(row[3]) == TASKS[name].shots


def test_the_configuration_that_is_shown_is_valid() -> None:
    during, reward = map(yaml.safe_load, blocks("yaml"))
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
