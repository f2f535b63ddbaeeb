"""Rows as columns: what went in comes out, in the order of steps, and what cannot be read is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmtrain.runs.rows import Rows

ROWS = [
    {"step": 1, "loss": 2.5, "tokens": 100},
    {"step": 2, "loss": None, "tokens": 200, "nonfinite_steps": 1},
    {"step": 3, "loss": 2.25, "tokens": 300, "nonfinite_steps": 1},
]


def test_rows_come_out_as_they_went_in() -> None:
    rows = Rows(ROWS)
    assert list(rows) == ROWS
    assert [rows[i] for i in (0, 1, -1)] == [ROWS[0], ROWS[1], ROWS[2]]
    assert rows[1:] == ROWS[1:]
    assert len(rows) == 3
    with pytest.raises(IndexError):
        rows[3]


def test_rows_are_in_the_order_of_their_steps() -> None:
    assert list(Rows([ROWS[2], ROWS[0], ROWS[1]])) == ROWS


def test_a_column_has_the_rows_that_have_the_field() -> None:
    numbers, values = Rows(ROWS).column("nonfinite_steps")
    assert (numbers.tolist(), values.tolist()) == ([1, 2], [1.0, 1.0])
    np.testing.assert_equal(Rows(ROWS).values("nonfinite_steps"), [np.nan, 1.0, 1.0])
    np.testing.assert_equal(Rows(ROWS).values("loss"), [2.5, np.nan, 2.25])
    assert len(Rows(ROWS).column("missing")[0]) == 0


def test_what_is_not_finite_is_none_in_a_row_also_of_counts() -> None:
    assert list(Rows([{"step": 1, "loss": float("inf"), "tokens": float("inf")}])) == [
        {"step": 1, "loss": None, "tokens": None}
    ]


def test_what_is_no_number_is_left_out() -> None:
    assert list(Rows([{"step": 1, "loss": "<b>", "epoch": [1]}])) == [{"step": 1}]


def test_a_file_is_read_but_for_its_torn_end_and_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    bad = ['{"step": 1', "[1]", '{"loss": 1}', '{"step": "x"}', '{"step": NaN}', "null"]
    bad += [f'{{"step": 1{"0" * 400}}}', f'{{"step": 1, "loss": 1{"0" * 400}}}']
    lines = [json.dumps(ROWS[0]), *bad, json.dumps({"step": 1, "eval_loss": 3.0}), json.dumps(ROWS[1])]
    path.write_text("\n".join(lines) + "\n" + json.dumps(ROWS[2])[:-4])
    train, evaluations, num_bad = Rows.read(path)
    assert (list(train), list(evaluations), num_bad) == (ROWS[:2], [{"step": 1, "eval_loss": 3.0}], len(bad))
    assert [len(each) for each in Rows.read(tmp_path / "none.jsonl")[:2]] == [0, 0]
