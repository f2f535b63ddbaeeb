"""Files with a JSON object on each line, which are read while they grow and end wherever a kill cut them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtrain.system.files import require_file
from llmtrain.system.visible import visible_json


def json_line(value: Mapping[str, Any]) -> str:
    """An object as a line: every text as it is, in letters that a person can read, and safe to `cat`."""
    return visible_json(json.dumps(value, ensure_ascii=False)) + "\n"


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, their ends included; none if it is not there.

    Raises OSError for what has no end. A last line without its end is left out: it may be being written.
    """
    if not path.exists():
        return
    require_file(path)
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object on a line; None if it holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
