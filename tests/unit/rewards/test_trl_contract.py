"""Functions with TRL's signature get all that TRL 1.16 gives them, and TRL's own rewards run as they are."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from llmtrain.rewards.batch import ScoreBatch, Scores
from llmtrain.rewards.load import load_rewards
from llmtrain.rewards.score import score

CHAT = ({"role": "user", "content": "What is 1/3?"},)
STATE = TrainerState(global_step=7, max_steps=20)


def scored(spec: Any, responses: list[str], rows: list[dict[str, Any]], ids: list[list[int]] | None = None) -> Scores:
    batch = ScoreBatch([CHAT] * len(rows), responses, rows, range(len(rows)), ids or [[1]] * len(rows), STATE)
    return score(load_rewards([spec] if not isinstance(spec, list) else spec), batch)


def mine(tmp_path: Path, source: str, name: str = "mine") -> str:
    file = tmp_path / f"reward_of_{tmp_path.name}.py"
    file.write_text(source, encoding="utf-8")
    return f"{file}:{name}"


@pytest.mark.parametrize(
    ("argument", "condition"),
    [
        ("prompts, completions", "prompts == [[dict(m) for m in prompts[0]]] * 2 and type(prompts[0]) is list"),
        ("completions", "completions[1] == [{'role': 'assistant', 'content': 'b'}]"),
        ("completions, completion_ids", "completion_ids == [[1, 2], [3]]"),
        ("completion_ids", "completion_ids == [[1, 2], [3]]"),
        ("completions, trainer_state", "trainer_state.global_step == 7 and trainer_state.max_steps == 20"),
        ("completions, answer", "answer == ['x', None]"),
        (
            "completions, **kwargs",
            "'completion_ids' in kwargs and 'prompt' not in kwargs and kwargs['answer'][0] == 'x'",
        ),
        ("completions, log_extra=None", "log_extra('seen', ['p', 'q']) is None"),
        ("completions, log_metric=None", "log_metric('length', 3) is None"),
    ],
)
def test_a_function_gets_what_it_asks_for(tmp_path: Path, argument: str, condition: str) -> None:
    name = mine(tmp_path, f"def mine({argument}):\n    assert {condition}\n    return [1.0, 0.0]\n")
    rows = [{"answer": "x", "prompt": "not given twice"}, {"completion_ids": "not given twice"}]
    found = scored(name, ["a", "b"], rows, [[1, 2], [3]])
    assert found.total == [1.0, 0.0]
    assert found.logged.by_sample(2) == ([{"seen": "p"}, {"seen": "q"}] if "log_extra" in argument else [{}, {}])
    assert found.logged.metrics == ([("length", 3.0)] if "log_metric" in argument else [])


@pytest.mark.parametrize("changed", ["prompts[0].clear()", "completions[0][0].clear()", "answer[0].append(1)"])
def test_a_function_may_change_what_it_gets(tmp_path: Path, changed: str) -> None:
    source = f"def mine(prompts, completions, answer):\n    {changed}\n    return [1.0]\n"
    row = {"answer": ["x"]}
    spec = [mine(tmp_path, source), {"name": "regex", "pattern": "a"}]
    assert scored(spec, ["a"], [row]).total == [2.0] and row == {"answer": ["x"]} and CHAT[0]["content"]


def test_none_abstains_and_the_others_keep_their_weights(tmp_path: Path) -> None:
    name = mine(tmp_path, "def mine(completions, answer):\n    return [None if a is None else 1.0 for a in answer]\n")
    spec = [{"name": name, "weight": 4}, {"name": "regex", "pattern": "a", "weight": 0.5}]
    found = scored(spec, ["a", "a", "b"], [{"answer": None}, {"answer": 1}, {"answer": None}])
    assert found.total == [0.5, 4.5, 0.0]
    assert list(found.by_reward.values()) == [[None, 1.0, None], [1.0, 1.0, 0.0]]


def test_where_all_abstain_the_score_is_zero(tmp_path: Path) -> None:
    name = mine(tmp_path, "def mine(completions):\n    return [None, 2.0]\n")
    assert scored(name, ["a", "b"], [{}, {}]).total == [0.0, 2.0]


THIRD = r"<think>thoughts</think> It is \boxed{\frac{1}{3}}"
HALF = r"<think>thoughts</think> It is \boxed{\frac{1}{2}}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("trl:accuracy_reward", [1.0, 0.0, None]),
        ("trl:reasoning_accuracy_reward", [1.0, 0.0, None]),
        ({"name": "trl:reasoning_accuracy_reward", "reasoning_delimiters": ["</no>"]}, [0.0, 0.0, 0.0]),
        ({"name": "trl:get_cosine_scaled_reward", "max_len": 100}, [0.75, -0.75, None]),
        ("trl:think_format_reward", [1.0, 1.0, 1.0]),
        ({"name": "trl:get_repetition_penalty_reward", "ngram_size": 1, "max_penalty": -1.0}, [-0.98] * 3),
        (
            {"name": "trl:get_soft_overlong_punishment", "max_completion_len": 60, "soft_punish_cache": 20},
            [-0.5, -0.5, -0.5],
        ),
    ],
)
def test_each_of_trls_own_rewards(spec: Any, expected: list[float | None]) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("math_verify")
    before = signal.getsignal(signal.SIGALRM)
    rows = [{"solution": r"\frac{1}{3}"}, {"solution": r"\frac{1}{3}"}, {"solution": ""}]
    found = scored(spec, [THIRD, HALF, THIRD], rows, [[1] * 50] * 3)
    (scores,) = found.by_reward.values()
    assert [None if score is None else pytest.approx(score) for score in expected] == scores
    assert signal.getsignal(signal.SIGALRM) is before  # math-verify's own limits would take it, in the main thread


def test_coroutines_are_awaited_together_and_plain_functions_called(tmp_path: Path) -> None:
    source = """
import asyncio
ready, met = 0, None
async def one(completions, **kwargs):
    return await meet(1.0, completions)
async def two(prompts, responses, rows):
    return await meet(2.0, responses)
class Three:
    async def __call__(self, completions):
        return await meet(4.0, completions)
three = Three()
async def meet(value, texts):
    global ready, met
    met = met or asyncio.Event()
    ready += 1
    if ready == 3:
        met.set()
    await asyncio.wait_for(met.wait(), 60)
    return [value for _ in texts]
"""
    specs = [mine(tmp_path, source, name) for name in ("one", "two", "three")]
    assert scored([*specs, {"name": "regex", "pattern": "a"}], ["a", "b"], [{}, {}]).total == [8.0, 7.0]


def test_a_function_that_is_not_ours_runs_outside_the_main_thread(tmp_path: Path) -> None:
    source = "import threading\ndef mine(completions):\n    return [float(threading.get_ident())] * len(completions)\n"
    (found,) = scored(mine(tmp_path, source), ["a"], [{}]).total
    assert not math.isclose(found, threading.get_ident(), rel_tol=0, abs_tol=0.5)
