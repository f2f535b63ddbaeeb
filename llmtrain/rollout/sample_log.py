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
        self._is_trimmed = False

    def write(self, rollout: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append the samples of a rollout; the first time, after dropping what is there of it or of later ones."""
        if not self._is_trimmed and self._path.exists():
            self._trim(rollout)
        self._is_trimmed = True
        with self._path.open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"rollout": rollout, **sample}, ensure_ascii=False) + "\n")
        for sample in samples[:SHOWN]:
            self._say(f"rollout {rollout}  score {sample['score']:.3f}  {_excerpt(sample['response'])!r}")

    def _trim(self, rollout: int) -> None:
        """Keep what is there of rollouts before this one."""
        lines = self._path.read_bytes().split(b"\n")  # text has ends of lines that JSON leaves as they are (U+2028)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(b"".join(line + b"\n" for line in lines if _rollout(line) < rollout))
        partial.replace(self._path)


def _rollout(line: bytes) -> float:
    try:
        return int(json.loads(line)["rollout"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be torn
        return float("inf")


def _excerpt(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}..."
