"""Scores of pairs: a reward that likes one attribute is found, one that does not care is not said to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bias_sets
import numpy as np
import pytest

from llmtrain.eval.bias.scores import PROMPT, scored_pairs
from llmtrain.eval.tasks.results import TaskResult, estimate
from llmtrain.rewards.batch import WeightedReward, of_rows
from llmtrain.tasks.load import BIAS
from llmtrain.tasks.rows import read_task, task_source


def scored(function: Any, task: str, data: Path) -> TaskResult:
    rows = read_task(BIAS[task], task_source(BIAS[task], str(data)), limit=None)
    return scored_pairs(WeightedReward("r", 1.0, of_rows(function)), BIAS[task], rows, PROMPT)


def likes_she(prompts: list[Any], responses: list[str], rows: list[Any]) -> list[float]:
    return [len(text) * 0.01 + 2.0 * (" she " in text) for text in responses]


def does_not_care(prompts: list[Any], responses: list[str], rows: list[Any]) -> list[float]:
    return [float(np.random.default_rng(list(text.encode())).normal()) for text in responses]


def test_a_preference_for_one_attribute_is_found_by_attribute(tmp_path: Path) -> None:
    bias_sets.write_winogender(tmp_path)
    result = scored(likes_she, "winogender", tmp_path)
    found = {measure.name: estimate(result.items, measure) for measure in result.measures}
    assert found["first_higher/she - he"].value == 1.0 and found["first_higher/she - he"].low > 0.5
    scores = [score for item in result.items for score in item.details["scores"]]
    she = [
        first - second
        for first, second in (i.details["scores"] for i in result.items if "difference/she - he" in i.values)
    ]
    assert found["difference/she - he"].value == pytest.approx(np.mean(she) / np.std(scores), abs=1e-4)
    assert found["difference/she - he"].low > 5 * abs(found["difference/they - he"].value)
    assert {item.cluster for item in result.items} == set(bias_sets.OCCUPATIONS)


def test_a_reward_that_does_not_care_is_not_said_to(tmp_path: Path) -> None:
    bias_sets.write_crows(tmp_path, bias_sets.crows(200))
    result = scored(does_not_care, "crows_pairs", tmp_path)
    for measure in result.measures:
        each = estimate(result.items, measure)
        assert measure.ideal is not None
        assert each.low <= measure.ideal <= each.high, measure.name


def test_pairs_have_their_own_prompt_or_the_common_one_and_what_cannot_be_scored_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "attribute_pairs.jsonl"
    turns = [{"role": "user", "content": "Hi, I am Ann."}, {"role": "assistant", "content": "Hello."}]
    other = [{"role": "user", "content": "Hi, I am Bob."}, turns[1]]
    rows = [
        {"attribute": "gender", "first": "She.", "second": "He."},
        {"attribute": "gender", "prompt": "Who?", "first": "She.", "second": "He."},
        {"attribute": "name", "first": turns, "second": other},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    seen: list[Any] = []

    def kept(prompts: list[Any], responses: list[str], rows: list[Any]) -> list[float | None]:
        seen.extend(zip(prompts, responses, strict=True))
        return [None if response == "Hello." else float(len(response)) for response in responses]

    result = scored(kept, "attribute_pairs", path)
    assert seen == [
        (PROMPT, "She."),
        (PROMPT, "He."),
        ([{"role": "user", "content": "Who?"}], "She."),
        ([{"role": "user", "content": "Who?"}], "He."),
        ([turns[0]], "Hello."),
        ([other[0]], "Hello."),
    ]
    assert len(result.items) == 2 and result.notes[0] == "1 pairs cannot be scored"


def test_a_measure_without_pairs_is_refused(tmp_path: Path) -> None:
    bias_sets.write_bbq(tmp_path, bias_sets.bbq_rows())
    with pytest.raises(ValueError, match=r"bbq: .* has no pairs of texts that differ in one attribute alone"):
        scored(likes_she, "bbq", tmp_path)
