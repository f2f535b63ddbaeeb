"""The axes of a report's figures."""

from __future__ import annotations

import re

import numpy as np
import pytest

from llmtrain.runs.report.curves import Curve
from llmtrain.runs.report.figures import Line, Scale, line_chart


@pytest.mark.parametrize(
    ("label", "places", "named"),
    [("trial", [0, 2], {"0", "1", "2"}), ("trial", [4, 4], {"4"}), ("step", [8, 8], {"8"})],
)
def test_what_is_counted_has_no_fractions_on_its_axis(label: str, places: list[int], named: set[str]) -> None:
    curve = Curve(np.asarray(places, dtype=float), np.asarray([1000.0, 2000.0]))
    drawn = str(line_chart([Line("a", curve)], Scale(label), Scale("loss"), title="t"))
    words = re.findall(r"<text[^>]*>\s*([\d.]+)\s*</text>", drawn)
    assert {word for word in words if float(word) < 1000} == named
