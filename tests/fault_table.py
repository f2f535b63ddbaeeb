"""tests/fault_table.py: rows of the fault table of docs/cluster.md, from the tests that make the faults.

    from fault_table import record
    record(fault="`kill -9` of one rank", sees=last_line(ended.err), lost="steps after the last checkpoint")

With LLMTRAIN_FAULT_TABLE=rows.jsonl each test adds one line there, once it has seen what it claims; otherwise nothing
is written. `sees` is the real text of this run, `lost` what the test has checked.
"""

from __future__ import annotations

import json
import os


def record(*, fault: str, sees: str, lost: str) -> None:
    """Add a row to the file that LLMTRAIN_FAULT_TABLE names, if it names one."""
    path = os.environ.get("LLMTRAIN_FAULT_TABLE")
    if path:
        with open(path, "a", encoding="utf-8") as file:  # one short write, so tests of several processes can share it
            file.write(json.dumps({"fault": fault, "sees": sees, "lost": lost}, ensure_ascii=False) + "\n")


def last_line(text: str) -> str:
    """The last line of an output that is not blank."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()
