"""A reward that is slow, fails once, or always fails: it is called again, left out and counted, or stops by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.rewards.batch import ScoreBatch
from llmtrain.rewards.calls import Patience
from llmtrain.rewards.load import load_rewards
from llmtrain.rewards.score import RewardFailed, score

BATCH = ScoreBatch(["p", "q"], ["a", "b"], [{}, {}], [4, 5], [[1], [2]])
SLOW = "import threading\nthreading.Event().wait()"
SLOW_ASYNC = "import asyncio\nawait asyncio.Event().wait()"
BLOCKING_ASYNC = "import threading\nthreading.Event().wait()"


def reward(tmp_path: Path, body: str, prefix: str = "", weight: float = 1.0) -> Any:
    file = tmp_path / f"calls_{tmp_path.name}.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    file.write_text(
        f"calls = []\n{prefix}def mine(completions):\n    calls.append(1)\n{lines}\n    return [1.0, 0.0]\n"
    )
    return load_rewards([{"name": f"{file}:mine", "weight": weight}, {"name": "regex", "pattern": "a"}])


@pytest.mark.parametrize("prefix", ["", "async "])
@pytest.mark.parametrize("fails", ["raise OSError('busy')", "raise SystemExit(1)"])
def test_a_function_that_fails_once_is_called_again(tmp_path: Path, prefix: str, fails: str) -> None:
    rewards = reward(tmp_path, f"if len(calls) < 3: {fails}", prefix)
    assert score(rewards, BATCH, Patience(retries=2)).total == [2.0, 0.0]


@pytest.mark.parametrize(
    ("body", "prefix"),
    [
        ("raise OSError('busy')", ""),
        ("raise OSError('busy')", "async "),
        ("return [1.0]", ""),
        ("raise TimeoutError('its own')", "async "),
        ("return [float('nan'), 1.0]", "async "),
        (SLOW, ""),
        (SLOW_ASYNC, "async "),
        (BLOCKING_ASYNC, "async "),
    ],
)
def test_a_failure_is_left_out_and_counted_if_asked(tmp_path: Path, body: str, prefix: str) -> None:
    rewards = reward(tmp_path, body, prefix)
    found = score(rewards, BATCH, Patience(seconds=0.2, on_error="abstain"))
    assert found.total == [1.0, 0.0]
    assert found.failed == {rewards[0].name: 2, "regex": 0}
    assert found.by_reward[rewards[0].name] == [None, None]


@pytest.mark.parametrize(
    ("body", "prefix", "message"),
    [
        ("raise OSError('busy')", "", r"failed on sample 4 \('a'\): OSError: busy \(.*\)$"),
        ("raise OSError('busy')", "async ", r"failed on the batch: OSError: busy \(.*\)$"),
        (SLOW, "", r"failed on the batch: it took more than 0\.2 seconds: raise rollout\.reward_seconds, or "),
        (SLOW_ASYNC, "async ", r"failed on the batch: it took more than 0\.2 seconds: raise rollout\.reward_seconds"),
    ],
)
def test_otherwise_it_stops_by_name(tmp_path: Path, body: str, prefix: str, message: str) -> None:
    with pytest.raises(RewardFailed, match=rf"^reward .*:mine {message}") as caught:
        score(reward(tmp_path, body, prefix), BATCH, Patience(seconds=0.2))
    assert "\n" not in str(caught.value)


NEIGHBOUR = "SCALE = 3.0\n"
FILES = {
    "a dataclass": """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Point:
    x: float
def mine(completions):
    return [Point(3.0).x for _ in completions]
""",
    "a neighbour": """
from neighbour_of_{stem} import SCALE
def mine(completions):
    return [SCALE for _ in completions]
""",
    "a neighbour, later": """
def mine(completions):
    import neighbour_of_{stem}
    return [neighbour_of_{stem}.SCALE for _ in completions]
""",
    "a pool of processes": """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
def one(text):
    return 3.0
def mine(completions):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(one, completions))
""",
    "pickle": """
import pickle
class Scorer:
    def __call__(self, text): return 3.0
def mine(completions):
    return [pickle.loads(pickle.dumps(Scorer()))(text) for text in completions]
""",
    "a NamedTuple and get_type_hints": """
from __future__ import annotations
from typing import NamedTuple, get_type_hints
class Point(NamedTuple):
    x: Other
class Other: pass
def mine(completions):
    return [3.0 * (get_type_hints(Point)["x"] is Other) for _ in completions]
""",
    "inspect.getsource": """
import inspect
def mine(completions):
    return [3.0 * inspect.getsource(mine).startswith("def mine") for _ in completions]
""",
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("stem", ["plain", "json", "two words", "test"])
def test_a_file_is_loaded_as_a_module(tmp_path: Path, kind: str, stem: str) -> None:
    if kind == "a pool of processes" and stem not in ("plain", "test"):
        pytest.skip("a process that is spawned imports the file by its name")
    unique = f"{stem}_{tmp_path.name}".replace(" ", "_").replace("-", "_")
    (tmp_path / f"neighbour_of_{unique}.py").write_text(NEIGHBOUR)
    file = tmp_path / (f"{unique}.py" if stem == "plain" or kind == "a pool of processes" else f"{stem}.py")
    file.write_text(FILES[kind].replace("{stem}", unique))
    rewards = load_rewards([f"{file}:mine", {"name": f"{file}:mine", "weight": 0}])
    assert score(rewards, BATCH).total == [3.0, 3.0]


def test_files_of_one_name_and_names_of_installed_modules_do_not_meet(tmp_path: Path) -> None:
    import json

    for folder, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "json.py").write_text(f"def mine(completions):\n    return [{value}] * len(completions)\n")
    rewards = load_rewards([f"{tmp_path / folder / 'json.py'}:mine" for folder in ("a", "b")])
    assert score(rewards, BATCH).total == [3.0, 3.0]
    assert json.loads("1") == 1
