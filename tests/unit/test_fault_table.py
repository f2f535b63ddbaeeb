"""The fault table of docs/cluster.md is made of faults that tests make."""

from __future__ import annotations

import json
from pathlib import Path

import make_fault_table
import pytest
from make_fault_table import BEGIN, END, HEAD, PAGE, is_known, main, table_of

ROWS = table_of(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("fault", ROWS)
def test_a_fault_of_the_page_is_one_that_a_test_makes(fault: str) -> None:
    assert is_known(fault)


def test_a_fault_that_no_test_makes_is_not_known() -> None:
    assert not is_known("the moon is full")


def test_new_rows_replace_old_ones_and_rows_of_unknown_faults_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, replaced = list(ROWS)[:2]
    page, rows = tmp_path / "page.md", tmp_path / "rows.jsonl"
    lines = [ROWS[kept], ROWS[replaced], "| the moon is full | `tides` | sleep |\n"]
    page.write_text(f"before\n{BEGIN}\n{HEAD}{''.join(lines)}{END}\nafter\n", encoding="utf-8")
    sees = "/tmp/pytest-of-someone/pytest-12/test_x0/run is gone"
    rows.write_text(f"{json.dumps({'fault': replaced, 'sees': sees, 'lost': 'nothing'})}\n", encoding="utf-8")
    monkeypatch.setattr(make_fault_table, "PAGE", page)
    main(rows)
    new = f"| {replaced} | `/shared/run is gone` | nothing |\n"
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{HEAD}{ROWS[kept]}{new}{END}\nafter\n"
