"""`samples.jsonl`: what was asked, what was answered and what it was worth, a line a sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = 2  # samples of a rollout told on the terminal
SHOWN_CHARS = 160


class SampleLog:
    """Keeps the samples of each rollout once: a rollout that is made again takes the place of what it wrote before."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say

    def write(self, rollout: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append the samples of a rollout, after dropping what is there of it or of later ones."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _rollout(line) < rollout]
        if len(kept) < len(lines):
            partial = self._path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(self._path)
        with self._path.open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"rollout": rollout, **sample}, ensure_ascii=False) + "\n")
        for sample in samples[:SHOWN]:
            self._say(f"rollout {rollout}  score {sample['score']:.3f}  {_excerpt(sample['response'])!r}")


def _rollout(line: str) -> float:
    try:
        return int(json.loads(line)["rollout"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be torn
        return float("inf")


def _excerpt(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}..."
