"""What runs measured before and after training (`eval.before_after`), compared item by item."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from llmtrain.eval.tasks.results import read_evaluation
from llmtrain.system.run_files import after_path, before_path

SECTION = "### Before and after training"


def assert_same_pair(one: Path, two: Path, tasks: Collection[str], *, tolerance: float) -> None:
    """Two runs' folders have these tasks measured, with the same items and values, and cards that say so.

    `two` may lack what `tasks` does not name.
    """
    for path in (before_path, after_path):
        single, split = read_evaluation(path(one)), read_evaluation(path(two))
        assert split.model["not_measured"] == {}
        assert split.tasks.keys() == set(tasks) <= single.tasks.keys()
        for name, result in split.tasks.items():
            expected = {item.item: item.values for item in single.tasks[name].items}
            assert len(result.items) == len(expected) > 1
            for item in result.items:
                assert item.values == pytest.approx(expected[item.item], abs=tolerance), (name, item.where)
    assert SECTION in (two / "model" / "README.md").read_text(encoding="utf-8")
