"""Rewards are loaded by name and summed by weight, and one that misbehaves is named in one line with its sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmtrain.rewards.batch import ScoreBatch, Scores, WeightedReward
from llmtrain.rewards.load import load_rewards, with_unique_names
from llmtrain.rewards.score import score

PROMPTS = ["What is 2 + 2?", "What is 3 + 3?", "What is 4 + 4?"]
RESPONSES = ["It is 4.", "It is 7.\nSorry.", "8"]
ROWS = [{"answer": "#### 4"}, {"answer": "#### 6"}, {"answer": "#### 8"}]
IDS = [10, 11, 12]
FINITE = "return a finite number, or None to abstain$"


def scored(rewards: Sequence[WeightedReward], rows: Sequence[dict[str, Any]] = ROWS) -> Scores:
    return score(rewards, ScoreBatch(PROMPTS, RESPONSES, rows, IDS, [[1]] * 3))


def user_reward(
    tmp_path: Path, body: str, signature: str = "prompts, responses, rows", **settings: Any
) -> WeightedReward:
    """A reward from a user's file with one function."""
    file = tmp_path / "mine.py"
    file.write_text(f"def mine({signature}):\n    {body}\n", encoding="utf-8")
    return load_rewards([{"name": f"{file}:mine", **settings}])[0]


def test_the_total_is_the_weighted_sum() -> None:
    scores = scored(load_rewards(["gsm8k", {"name": "max_sentences", "weight": 0.5, "limit": 1}]))
    assert scores.by_reward == {"gsm8k": [1.0, 0.0, 1.0], "max_sentences": [1.0, 0.0, 1.0]}
    assert scores.total == [1.5, 0.0, 1.5]


def test_a_reward_that_is_used_twice_keeps_both_accounts() -> None:
    scores = scored(load_rewards([{"name": "regex", "pattern": "It"}, {"name": "regex", "pattern": "8", "weight": -1}]))
    assert scores.by_reward == {"regex": [1.0, 1.0, 0.0], "regex 2": [0.0, 0.0, 1.0]}
    assert scores.total == [1.0, 1.0, -1.0]


def test_two_rewards_of_one_name_are_numbered() -> None:
    rewards = with_unique_names(
        [WeightedReward("model runs/a", weight, load_rewards(["gsm8k"])[0].function) for weight in (1.0, 2.0)]
    )
    assert [(reward.name, reward.weight) for reward in rewards] == [("model runs/a", 1.0), ("model runs/a 2", 2.0)]
    with pytest.raises(AssertionError, match="rewards of one name"):
        scored([rewards[0], rewards[0]])


def test_a_reward_is_not_asked_about_no_response(tmp_path: Path) -> None:
    term = user_reward(tmp_path, "raise ValueError('nothing to score')")
    assert score([term], ScoreBatch([], [], [], [])) == Scores([], {term.name: []}, {term.name: 0})


def test_a_users_function_gets_prompts_responses_rows_and_settings(tmp_path: Path) -> None:
    body = "return [scale * len(p) + len(r) + len(row['answer']) for p, r, row in zip(prompts, responses, rows)]"
    term = user_reward(tmp_path, body, "prompts, responses, rows, scale=1", scale=2)
    assert scored([term]).total == [28 + 8 + 6, 28 + 15 + 6, 28 + 1 + 6]


def test_a_function_with_trls_signature_gets_completions_and_columns(tmp_path: Path) -> None:
    body = (
        "assert {'prompts', 'task', 'completion_ids', 'trainer_state'} <= set(others) and 'prompt' not in others\n"
        "    return [float(a in c) for a, c in zip(answer, completions)]"
    )
    term = user_reward(tmp_path, body, "completions, answer, **others")
    rows = [{"answer": "4", "prompt": "never given twice"}, {"answer": "6", "task": "sums"}, {"answer": "8"}]
    assert scored([term], rows).total == [1.0, 0.0, 1.0]


def test_a_function_with_trls_signature_gets_only_the_columns_it_names(tmp_path: Path) -> None:
    term = user_reward(tmp_path, "return [len(text) for text in completions]", "completions")
    assert scored([term]).total == [8.0, 15.0, 1.0]


def test_a_column_that_no_row_has_is_named_with_those_that_they_have(tmp_path: Path) -> None:
    rows = [{"answer": "4", "prompt": "x"}, {"task": "sums"}, {}]
    term = user_reward(tmp_path, "return [1.0] * len(completions)", "completions, solution, scale, other=1", scale=2)
    message = r"failed on sample 10 \(.*\): it takes 'solution', which no row has, only 'answer'$"
    with pytest.raises(ValueError, match=message):
        scored([term], rows)
    assert scored([term], [*rows[1:], {"solution": "6"}]).total == [1.0, 1.0, 1.0]


def test_what_a_decorator_gives_to_a_function_need_not_be_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(
        "import functools\n"
        "def scaled(function):\n"
        "    @functools.wraps(function)\n"
        "    def inner(*args, **kwargs):\n"
        "        return function(*args, scale=2, **kwargs)\n"
        "    return inner\n"
        "@scaled\n"
        "def reward(completions, scale):\n"
        "    return [scale * len(text) for text in completions]\n"
    )
    assert scored(load_rewards([f"{path}:reward"])).total == [16.0, 30.0, 2.0]


def test_completions_of_chats_are_messages(tmp_path: Path) -> None:
    body = "return [float(c == [{'role': 'assistant', 'content': 'Hi.'}]) for c in completions]"
    term = user_reward(tmp_path, body, "prompts, completions")
    chat = [{"role": "user", "content": "Hello"}]
    assert score([term], ScoreBatch([chat], ["Hi."], [{}], [0])).total == [1.0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_trls_own_rewards_score_texts() -> None:
    pytest.importorskip("trl")
    rewards = load_rewards(
        [
            "trl:think_format_reward",
            {"name": "trl:get_repetition_penalty_reward", "ngram_size": 1, "max_penalty": -1.0},
        ]
    )
    responses = ["<think>\nTwo and two.\n</think>\n4", "one one one one"]
    ids = [list(range(9)), [1, 1, 1, 1]]
    scores = score(rewards, ScoreBatch(PROMPTS[:2], responses, [{}, {}], IDS[:2], ids))
    assert scores.by_reward["trl:think_format_reward"] == [1.0, 0.0]
    assert scores.by_reward["trl:get_repetition_penalty_reward"][1] == -0.75


def test_a_function_that_changes_its_arguments_changes_nothing_else(tmp_path: Path) -> None:
    body = "prompts.clear(); responses.clear(); [row.clear() for row in rows]; return [0.0] * 3"
    rows = [dict(row) for row in ROWS]
    scores = scored([user_reward(tmp_path, body), *load_rewards(["gsm8k"])], rows)
    assert scores.by_reward["gsm8k"] == [1.0, 0.0, 1.0] and rows == ROWS


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return [1 / (len(r) - 15) for r in responses]",
            r"failed on sample 11 \('It is 7\. Sorry\.'\): ZeroDivisionError: division by zero \(.*mine\.py:2\)$",
        ),
        ("import sys; sys.exit(0)", r"failed on sample 10 \('It is 4\.'\): SystemExit: 0 \(.*mine\.py:2\)$"),
        ("return [1.0 / (len(responses) == 1) for _ in responses]", r"failed on the batch: ZeroDivisionError: .*"),
        ("raise ValueError('two\\nlines')", r"failed on sample 10 .*: ValueError: two lines \(.*\)$"),
        (
            "return [1.0, float('nan'), 1.0]",
            r"returned nan for sample 11 .*: " + FINITE,
        ),
        (
            "return [1.0, 1.0, float('-inf')]",
            r"returned -inf for sample 12 .*: " + FINITE,
        ),
        ("return [1.0, 10 ** 5000, 1.0]", r"returned a number that fp32 does not hold for sample 11 .*: " + FINITE),
        ("return [1.0, 1.0, 1e39]", r"returned a number that fp32 does not hold for sample 12 .*: " + FINITE),
        (
            "return ['1.0', 1.0, 1.0]",
            r"returned '1\.0' \(str\) for sample 10 .*: " + FINITE,
        ),
        (
            "return [1j, 1.0, 1.0]",
            r"returned 1j \(complex\) for sample 10 .*: " + FINITE,
        ),
        (
            "return [[1.0]] * 3",
            r"returned \[1\.0\] \(list\) for sample 10 .*: " + FINITE,
        ),
        (
            "return [1.0, 1.0]",
            r"returned 2 scores for 3 responses, the first of them sample 10 .*: return one for each$",
        ),
        ("return []", r"returned 0 scores for 3 responses, the first of them sample 10 .*: return one for each$"),
        ("return 1.0", r"returned float, not a list of 3 numbers$"),
        ("return {i: 1.0 for i in range(3)}", r"returned dict, not a list of 3 numbers$"),
        ("return {1.0, 2.0, 3.0}", r"returned set, not a list of 3 numbers$"),
        ("return None", r"returned NoneType, not a list of 3 numbers$"),
    ],
)
def test_a_function_that_misbehaves_is_named_with_its_sample(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^reward .*mine\.py:mine {message}") as caught:
        scored([user_reward(tmp_path, body)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "return (True, False, 1)",
        "import numpy; return numpy.array([1, 0, 1], dtype=numpy.float32)",
        "import numpy; return numpy.array([1, 0, 1]) == 1",
        "return (float(i != 1) for i in range(3))",
        "import torch; return torch.tensor([1.0, 0.0, 1.0])",
        "import torch; return [torch.tensor(1), torch.zeros(1), 1.0]",
    ],
)
def test_any_real_numbers_are_scores(tmp_path: Path, body: str) -> None:
    assert scored([user_reward(tmp_path, body)]).total == [1.0, 0.0, 1.0]


def test_a_long_response_is_cut_in_the_message(tmp_path: Path) -> None:
    term = user_reward(tmp_path, "return ['x']")
    with pytest.raises(ValueError, match=r"for sample 0 \('(ab ){20}\.\.\.'\): return") as caught:
        score([term], ScoreBatch(["Say ab."], ["ab " * 500], [{}], [0]))
    assert len(str(caught.value)) < 300


def test_a_row_without_the_field_is_named_with_its_sample() -> None:
    rows = [ROWS[0], {"solution": "6"}, ROWS[2]]
    message = r"^reward gsm8k failed on sample 11 \(.*\): the row has no field 'answer', only 'solution': set .*$"
    with pytest.raises(ValueError, match=message):
        scored(load_rewards(["gsm8k"]), rows)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"weight": 1.0}, r"rollout\.rewards\[0\]: no name: give it the name of a reward"),
        ("max_sentence", r"rollout\.rewards\[0\]: no reward 'max_sentence': take one of exact_match, "),
        ({"name": "gsm8k", "weight": "2"}, r"rollout\.rewards\[0\]\.weight='2': must be a finite number"),
        ({"name": "gsm8k", "weight": float("nan")}, r"rollout\.rewards\[0\]\.weight=nan: must be a finite number"),
        (
            {"name": "max_sentences", "limits": 1},
            r"rollout\.rewards\[0\]: max_sentences has no setting 'limits', only ",
        ),
        ({"name": "max_sentences", "limit": "1"}, r"rollout\.rewards\[0\]\.limit='1': Input should be a valid integer"),
        (
            {"name": "max_sentences", "limit": 0},
            r"rollout\.rewards\[0\] \(max_sentences\): limit 0: must be at least 1",
        ),
        ({"name": "regex"}, r"rollout\.rewards\[0\]: regex needs pattern: set it"),
        (
            {"name": "regex", "pattern": "("},
            r"rollout\.rewards\[0\] \(regex\): pattern '\(' is not a regular",
        ),
        ({"name": "length", "target": 5, "maximum": 6}, r"rollout\.rewards\[0\] \(length\): give either target, or "),
        ({"name": "code_tests", "seconds": 0}, r"rollout\.rewards\[0\] \(code_tests\): seconds 0: must be at least 1"),
        ("nowhere.py:mine", r"rollout\.rewards\[0\]: nowhere\.py: no such file"),
        ("trl:no_such_reward", r"rollout\.rewards\[0\]: trl:no_such_reward: no function 'no_such_reward' there, only "),
    ],
)
def test_a_wrong_configuration_says_where(spec: Any, message: str) -> None:
    if str(spec).startswith("trl:"):
        pytest.importorskip("trl")
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        load_rewards([spec])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("def other(): ...", {}, r".*mine\.py:mine: no function 'mine' there, only other$"),
        ("import no_such_module", {}, r".*mine\.py fails: ModuleNotFoundError: No module named 'no_such_module'$"),
        ("def mine(texts): ...", {}, r".*mine takes neither \(prompts, responses, rows\) nor, as TRL's, "),
        ("def mine(prompts, responses, rows): ...", {"scale": 2}, r".*mine takes no 'scale', only prompts, responses"),
        ("mine = 3", {}, r".*mine\.py:mine: no function 'mine' there, only nothing$"),
    ],
)
def test_a_users_file_that_cannot_serve_is_refused(
    tmp_path: Path, source: str, settings: dict[str, Any], message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^rollout\.rewards\[0\]: {message}"):
        load_rewards([{"name": f"{file}:mine", **settings}])


def test_a_reward_behind_a_model_is_told_by_its_own_place() -> None:
    with pytest.raises(ValueError, match=r"^rollout\.rewards\[1\]: no reward 'nothing'"):
        load_rewards([{"name": "model", "path": "runs/a"}, "nothing"])
