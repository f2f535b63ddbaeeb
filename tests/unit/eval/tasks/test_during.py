"""Tasks during a run: the numbers do not depend on how many ranks share the items."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from tiny_chat import write_model
from torch import nn

from llmtrain.eval.tasks.during import WithTasks
from llmtrain.eval.tasks.measure import Asking
from llmtrain.eval.tasks.opened import generated, opened_subject
from llmtrain.eval.tasks.subject import Subject
from llmtrain.tasks.load import TASKS
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import AnswerItem, ChoiceItem
from llmtrain.tasks.winogender import item as pronoun

FOUND = {"eval_loss": 1.0, "summary": "held-out loss 1"}


class Together:
    """Ranks that are threads of this process."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size)
        self.given: dict[int, list[float]] = {}

    def sum_floats(self, rank: int, values: Sequence[float]) -> list[float]:
        self.barrier.wait(30)
        self.given[rank] = list(values)
        self.barrier.wait(30)
        return [sum(column) for column in zip(*self.given.values(), strict=True)]


class Rank:
    """One of them."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, rank: int, world_size: int, together: Together) -> None:
        self.rank, self.world_size, self._together = rank, world_size, together

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return self._together.sum_floats(self.rank, values)

    def any(self, flag: bool) -> bool:
        return self.sum_floats([float(flag)])[0] > 0

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


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


def measured(subject: Subject, world_size: int, asking: Asking) -> list[dict[str, Any] | None]:
    """What each rank gets."""
    together, found = Together(world_size), dict[int, dict[str, Any] | None]()
    evaluate: Callable[..., dict[str, Any]] = lambda model, should_stop: dict(FOUND)  # noqa: E731

    def one(rank: int) -> None:
        ranks: Any = Rank(rank, world_size, together)
        found[rank] = WithTasks(evaluate, tasks(), subject, asking, ranks)(nn.Module(), lambda: False)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_items_and_get_the_same_numbers(world_size: int, subject: Subject) -> None:
    few = [each for each in tasks() if each.task.name != "answers"]
    assert sum(len(each.rows) for each in few) > world_size
    asking = Asking(generated(subject), (), max_new_tokens=3)  # of one item: one thread alone generates
    (alone,) = measured(subject, 1, asking)
    assert alone is not None and {"eval_task/piqa/acc_low", "eval_task/text/bits_per_byte_high"} <= alone.keys()
    assert {"eval_task/winogender/nats_slope", "eval_task/winogender/acc_she_minus_he_low"} <= alone.keys()
    assert alone["summary"].startswith("held-out loss 1, piqa acc 0.")
    for found in measured(subject, world_size, asking):
        assert found is not None and found.keys() == alone.keys()
        numbers = {name: value for name, value in alone.items() if name.startswith("eval_task/")}
        assert {name: found[name] for name in numbers} == pytest.approx(numbers, abs=1e-5)


def test_if_one_rank_is_stopped_all_end(subject: Subject) -> None:
    assert measured(subject, 2, Asking(lambda prompts, sampling: None, ())) == [None, None]
