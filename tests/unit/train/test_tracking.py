"""Trackers that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.train.tracking import check_trackers


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log\.trackers names no_such_tracker, which is not installed"):
        check_trackers(["no_such_tracker"])


def test_a_folder_named_like_a_tracker_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="some_tracker, which is not installed"):
        check_trackers(["some_tracker"])
