"""Tasks before and after training: what is kept is of all items, however many ranks share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from thread_ranks import on_ranks
from tiny_chat import write_model

from llmtrain.eval.before_after.together import tasks_together
from llmtrain.eval.tasks.measure import Asking
from llmtrain.eval.tasks.opened import opened_subject
from llmtrain.eval.tasks.results import TaskResult, estimate
from llmtrain.eval.tasks.subject import Subject
from llmtrain.models.stops import Stops
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.tasks.crows_pairs import item as crows
from llmtrain.tasks.load import TASKS
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import AnswerItem, AnswerTask, ChoiceItem, RowFault
from llmtrain.tasks.winogender import item as pronoun


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return opened_subject(str(write_model(tmp_path_factory.mktemp("model"), spread=0.3)), lambda line: None)[0]


def rows_of(task: str, items: Sequence[object]) -> TaskRows:
    return TaskRows(TASKS[task], "x", [TaskRow(each, f"{n}", f"x:{n}", {"n": n}) for n, each in enumerate(items)], [])


def whole(subject: Subject, task_rows: TaskRows, world_size: int, asking: Asking) -> TaskResult:
    """What the main process gets; the others have no items."""
    main, *others = on_ranks(world_size, lambda ranks: tasks_together(task_rows, subject, asking, ranks))
    assert isinstance(main, TaskResult), main
    assert all(isinstance(other, TaskResult) and not other.items for other in others), others
    return main


def silent(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generated]:
    return [Generated([1], [0.0], True) for _ in prompts]


ASKING = Asking(silent, Stops())
WORLDS = [2, 3, 8]  # the last one: more ranks than items


def pronouns() -> TaskRows:
    return rows_of(
        "winogender",
        [
            pronoun({"sentid": f"{who}.guest.0.{gender}.txt", "sentence": f"The {who} ran as {word} saw."})
            for gender, word in (("male", "he"), ("female", "she"))  # pairs are not neighbours
            for who in ("cook", "smith", "nurse")
        ],
    )


def pairs() -> TaskRows:
    """One pair that is equally likely, the only one of its category, so that it is on one rank alone."""
    kinds = [("a b", "c d", "age"), ("e", "e", "nationality"), ("f g", "h i", "age"), ("a", "b", "age")]
    fields = [
        {"sent_more": more, "sent_less": less, "stereo_antistereo": "stereo", "bias_type": kind}
        for more, less, kind in kinds
    ]
    return rows_of("crows_pairs", [crows(each) for each in fields])


def choices() -> TaskRows:
    """The second and fourth have a context that the model has no positions for."""
    return rows_of("piqa", [ChoiceItem(("ab " * (40 * (n % 2) + 1),) * 2, (" a", " b"), 0, (1, 1)) for n in range(5)])


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("make", [pronouns, pairs, choices])
def test_several_ranks_keep_what_one_keeps(make: Any, world_size: int, subject: Subject) -> None:
    small = replace(subject, max_tokens=40)
    alone, split = whole(small, make(), 1, ASKING), whole(small, make(), world_size, ASKING)
    assert split.measures == alone.measures and split.notes == alone.notes and split.facts == alone.facts
    assert [item.item for item in split.items] == [item.item for item in alone.items]
    for each in alone.measures:
        first, second = (estimate(result.items, each) for result in (alone, split))
        assert second.num_items == first.num_items, each.name
        assert second.value == pytest.approx(first.value, abs=1e-5), each.name


def test_what_the_tests_above_split_is_there(subject: Subject) -> None:
    small = replace(subject, max_tokens=40)
    found = {make: whole(small, make(), 1, ASKING) for make in (pronouns, pairs, choices)}
    gap = next(each for each in found[pronouns].measures if each.name == "acc_she_minus_he")
    assert estimate(found[pronouns].items, gap).num_items == 3
    measures = {each.name: each.unit for each in found[pairs].measures}
    assert measures["stereotype"] == "mean" and "stereotype/nationality" in measures
    assert found[choices].notes == ["4 contexts lost their beginning, as the model has too few positions"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_score_of_answers_is_a_share_only_if_it_is_of_all_items(world_size: int, subject: Subject) -> None:
    def score(prompts: Any, responses: Any, rows: Sequence[Any]) -> list[float]:
        return [0.25 if row["n"] == 1 else 1.0 for row in rows]

    task = replace(AnswerTask("answers", "made up", _item, {"score": score}, max_new_tokens=2))
    split = replace(rows_of("piqa", [AnswerItem("a"), AnswerItem("b"), AnswerItem("c")]), task=task)
    result = whole(subject, split, world_size, ASKING)
    assert {each.name: each.unit for each in result.measures} == {"score": "mean", "ends": "share"}


def _item(fields: Any) -> AnswerItem:
    raise RowFault("the items are made")
