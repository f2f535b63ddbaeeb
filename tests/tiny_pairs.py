"""A reward run small enough to be trained many times: pairs of answers of which the better is easy to learn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiny_run import ROOT

RLHF = ROOT / "recipes" / "rlhf.py"
GOOD, BAD = "abcd", "efgh"  # what the words of chosen and rejected answers are made of


def pairs(*, seed: int, num_pairs: int = 160) -> Iterator[dict[str, Any]]:
    """Questions, each with a chosen answer of good letters and a rejected one of bad letters, of any length."""
    drawn = random.Random(seed)
    for number in range(num_pairs):
        question = f"{number}: " + " ".join(words(drawn, GOOD + BAD, drawn.randint(1, 3)))
        chosen, rejected = (" ".join(words(drawn, letters, drawn.randint(1, 5))) for letters in (GOOD, BAD))
        yield {"prompt": question, "chosen": chosen, "rejected": rejected}


def words(drawn: random.Random, letters: str, num_words: int) -> list[str]:
    return ["".join(drawn.choices(letters, k=drawn.randint(1, 4))) for _ in range(num_words)]


def write_pairs(path: Path, **settings: Any) -> Path:
    """The rows of `pairs` as JSON lines; the file."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in pairs(**settings)), encoding="utf-8")
    return path
