"""Measuring before and after leaves the module as it was, whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rollout_fixtures import OneRank
from torch import nn

from llmtrain.eval.before_after.measure import NOT_MEASURED, BeforeAfter
from llmtrain.eval.before_after.together import Unmeasured
from llmtrain.eval.tasks.results import NATS, ItemResult, TaskResult, read_evaluation


def found(module: nn.Module, should_stop: object) -> list[TaskResult]:
    assert not module.training
    return [TaskResult("one", [NATS], [ItemResult("one", "a", "x", {"nats": 1.0})], {})]


def fails(module: nn.Module, should_stop: object) -> list[TaskResult]:
    raise Unmeasured("no memory")


def breaks(module: nn.Module, should_stop: object) -> list[TaskResult]:
    raise RuntimeError("the ranks differ")


def before_after(*measurements: Callable[..., list[TaskResult]]) -> BeforeAfter:
    named = {each.__name__: each for each in measurements}
    return BeforeAfter(named, "things", {}, OneRank(), lambda line: None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("measurement", [found, fails, breaks])
def test_the_mode_of_the_module_is_as_before(
    measurement: Callable[..., list[TaskResult]], training: bool, tmp_path: Path
) -> None:
    module = nn.Sequential(nn.Dropout()).train(training)
    try:
        before_after(measurement).measure(tmp_path / "x", module, lambda: False, may_write=lambda: True, step=0)
    except RuntimeError:
        assert measurement is breaks
    assert module.training == module[0].training == training


def test_what_fails_leaves_the_rest_and_what_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    path, module = tmp_path / "x", nn.Identity()
    before_after(found).measure(path, module, lambda: True, may_write=lambda: True, step=0)
    assert not path.exists()
    before_after(fails, found).measure(path, module, lambda: False, may_write=lambda: True, step=0)
    kept = read_evaluation(path)
    assert kept.tasks.keys() == {"one"} and kept.model[NOT_MEASURED] == {"fails": "no memory"}
