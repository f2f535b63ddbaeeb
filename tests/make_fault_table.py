"""Write the fault table of docs/cluster.md from the rows that the tests recorded (tests/fault_table.py):

    LLMTRAIN_FAULT_TABLE=rows.jsonl python -m pytest tests/slurm tests/distributed tests/invariants
    python tests/make_fault_table.py rows.jsonl

A row of a fault replaces the one in the page; faults that were not recorded this time keep theirs, unless no test makes
them any more.
"""

from __future__ import annotations

import ast
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "cluster.md"
BEGIN, END = "<!-- made by tests/make_fault_table.py -->", "<!-- end of what it made -->"
HEAD = "| fault | what you see | what is lost |\n|---|---|---|\n"
FOLDERS_OF_TESTS = re.compile(r"/[^\s=:]*/test_\w+")
CHECKOUT = re.compile(r"/\S*/(?=recipes/\w+\.py)")


def main(rows: Path) -> None:
    """Bring the page's table up to date."""
    recorded = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    table = {fault: line for fault, line in table_of(PAGE.read_text(encoding="utf-8")).items() if is_known(fault)}
    table |= {row["fault"]: table_line(row) for row in recorded}
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{HEAD}{''.join(table.values())}{END}{after}", encoding="utf-8")
    print(f"{PAGE}: {len(table)} faults, {len({row['fault'] for row in recorded})} of them from {rows}")


def table_line(row: dict[str, str]) -> str:
    """A row of the table; what differs from machine to machine is made the same."""
    seen = CHECKOUT.sub("", FOLDERS_OF_TESTS.sub("/shared", row["sees"])).replace(socket.gethostname(), "node7")
    return f"| {row['fault']} | `{seen.replace('|', '/')}` | {row['lost']} |\n"


def table_of(page: str) -> dict[str, str]:
    """Fault -> its line of the page's table."""
    lines = page.split(BEGIN)[1].split(END)[0].removeprefix(f"\n{HEAD}").splitlines(keepends=True)
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}


def is_known(fault: str) -> bool:
    """Whether a test makes a fault."""
    return any(re.fullmatch(pattern, fault) for pattern in known_faults())


def known_faults() -> Iterator[str]:
    """Patterns of what the tests call `record(fault=...)` with; of an f-string, anything where it has braces.

    Of a variable, which a test is parametrized by, any string of its file.
    """
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "from fault_table import" not in text:
            continue
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "record":
                for keyword in node.keywords:
                    if keyword.arg == "fault":
                        yield from _patterns(keyword.value, nodes)


def _patterns(value: ast.expr, nodes: list[ast.AST]) -> list[str]:
    match value:
        case ast.Constant(value=str(text)):
            return [re.escape(text)]
        case ast.JoinedStr(values=parts):
            return ["".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts)]
        case _:
            return [re.escape(n.value) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
