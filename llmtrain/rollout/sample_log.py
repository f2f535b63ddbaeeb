"""`samples.jsonl`: a line for each sample, with its prompt, response and score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from llmtrain.protocols import Ranks, Report
from llmtrain.rewards.score import response_text

SAMPLES_FILE = "samples.jsonl"
NUM_SHOWN = 2  # samples of a rollout that go to the terminal
SHOWN_CHARS = 160


class SampleLog:
    """Keeps the samples of each rollout once: a rollout that is repeated after a restart replaces what was written."""

    def __init__(self, path: Path, report: Report) -> None:
        self._path, self._report = path, report
        self._is_trimmed = False

    def write(self, rollout: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append the samples of a rollout. The first call drops what the file has of this rollout and later ones."""
        if not self._is_trimmed and self._path.exists():
            self._trim(rollout)
        self._is_trimmed = True
        with self._path.open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"rollout": rollout, **sample}, ensure_ascii=False) + "\n")
        for sample in samples[:NUM_SHOWN]:
            self._report(f"rollout {rollout}  score {sample['score']:.3f}  {_excerpt(sample['response'])!r}")

    def _trim(self, rollout: int) -> None:
        """Keep the lines of rollouts before this one."""
        lines = self._path.read_bytes().split(b"\n")  # not splitlines: JSON leaves U+2028 in a text as it is
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(b"".join(line + b"\n" for line in lines if _rollout(line) < rollout))
        partial.replace(self._path)


def readable(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A row of `metrics.sample_rows` as `samples.jsonl` holds it: messages and text."""
    prompt, response = row["prompt"], row["response"]
    return {**row, "prompt": prompt.messages, "response": response_text(response, tokenizer)}


def gather_rows(rows: Sequence[Mapping[str, Any]], ranks: Ranks) -> list[dict[str, Any]]:
    """The rows of all ranks, by sample number, on the main process; [] on the others. Collective."""
    encoded = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    parts = [json.loads(part.numpy().tobytes()) for part in ranks.gather_to_main(encoded)]
    return sorted((row for part in parts for row in part), key=lambda row: int(row["sample"]))


def _rollout(line: bytes) -> float:
    """The number of a line's rollout; infinity for a line that is not whole, as a killed run may leave its last."""
    try:
        return int(json.loads(line)["rollout"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _excerpt(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}..."
