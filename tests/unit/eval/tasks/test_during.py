"""Tasks during a run: the numbers do not depend on how many ranks share the items."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from thread_ranks import on_ranks
from tiny_chat import write_model
from torch import nn

from llmtrain.eval.tasks.during import WithTasks
from llmtrain.eval.tasks.measure import Asking, measure, measures_of
from llmtrain.eval.tasks.opened import generated, opened_subject
from llmtrain.eval.tasks.results import estimate
from llmtrain.eval.tasks.subject import Subject
from llmtrain.models.stops import Stops
from llmtrain.tasks.load import TASKS
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import AnswerItem, ChoiceItem
from llmtrain.tasks.winogender import item as pronoun

FOUND = {"eval_loss": 1.0, "summary": "held-out loss 1"}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return opened_subject(str(write_model(tmp_path_factory.mktemp("model"), spread=0.3)), lambda line: None)[0]


def tasks() -> list[TaskRows]:
    items: dict[str, list[Any]] = {
        "piqa": [ChoiceItem((f"q{n}",) * 2, (" a", " bcd"), n % 2, (1, 3)) for n in range(7)],
        "text": [f"text number {n * n}" for n in range(3)],
        "answers": [AnswerItem("ab")],
        "winogender": [
            pronoun({"sentid": f"{who}.guest.0.{gender}.txt", "sentence": f"The {who} ran as {word} saw.", **women})
            for who, women in (
                ("cook", {"women": 0.8, "mean_women": 0.6}),
                ("smith", {"women": 0.1, "mean_women": 0.6}),
            )
            for gender, word in (("male", "he"), ("female", "she"), ("neutral", "they"))
        ],
    }
    return [
        TaskRows(
            TASKS[name], "x", [TaskRow[object](each, str(i), "x", {"answer": "y"}) for i, each in enumerate(given)], []
        )
        for name, given in items.items()
    ]


def measured(subject: Subject, world_size: int, asking: Asking) -> list[dict[str, Any] | Exception | None]:
    """What each rank gets."""
    evaluate: Callable[..., dict[str, Any]] = lambda model, should_stop: dict(FOUND)  # noqa: E731
    return on_ranks(
        world_size,
        lambda ranks: WithTasks(evaluate, tasks(), subject, asking, ranks)(nn.Module(), lambda: False),
    )


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_items_and_get_the_same_numbers(world_size: int, subject: Subject) -> None:
    few = [each for each in tasks() if each.task.name != "answers"]
    assert sum(len(each.rows) for each in few) > world_size
    asking = Asking(generated(subject), Stops(), max_new_tokens=3)  # of one item: one thread alone generates
    (alone,) = measured(subject, 1, asking)
    assert isinstance(alone, dict) and {"eval_task/piqa/acc_low", "eval_task/text/bits_per_byte_high"} <= alone.keys()
    assert {"eval_task/winogender/nats_slope", "eval_task/winogender/acc_she_minus_he_low"} <= alone.keys()
    assert alone["summary"].startswith("held-out loss 1, piqa acc 0.")
    for found in measured(subject, world_size, asking):
        assert isinstance(found, dict) and found.keys() == alone.keys()
        numbers = {name: value for name, value in alone.items() if name.startswith("eval_task/")}
        assert {name: found[name] for name in numbers} == pytest.approx(numbers, abs=1e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_intervals_are_those_of_an_evaluation_of_the_same_items(world_size: int, subject: Subject) -> None:
    asking = Asking(generated(subject), Stops(), max_new_tokens=3)
    found = measured(subject, world_size, asking)[0]
    assert isinstance(found, dict)
    for each in tasks():
        result = measure(subject, each, asking)
        assert result is not None
        by_name = {one.name: estimate(result.items, one) for one in result.measures}
        for name in {one.name for one in measures_of(each.task)} & by_name.keys():
            logged = [found.get(f"eval_task/{each.task.name}/{name}{end}", math.nan) for end in ("", "_low", "_high")]
            expected = (by_name[name].value, by_name[name].low, by_name[name].high)
            assert logged == pytest.approx(expected, abs=1e-5, nan_ok=True), (each.task.name, name)


def test_if_one_rank_is_stopped_all_end(subject: Subject) -> None:
    assert measured(subject, 2, Asking(lambda prompts, sampling: None, Stops())) == [None, None]
