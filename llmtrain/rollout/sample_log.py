"""The samples of rollouts in `samples.jsonl`: each with its prompt, response and score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from llmtrain.protocols import Ranks, Report
from llmtrain.rewards.score import answer_text
from llmtrain.train.sample_file import append_samples, keep_samples

NUM_SHOWN = 2  # samples of a rollout that go to the terminal
SHOWN_CHARS = 160


class SampleLog:
    """Keeps the samples of each rollout once: a rollout that is repeated after a restart replaces what was written."""

    def __init__(self, path: Path, report: Report) -> None:
        self._path, self._report = path, report
        self._is_trimmed = False

    def write(self, rollout: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append the samples of a rollout. The first call drops what the file has of this rollout and later ones."""
        if not self._is_trimmed:
            keep_samples(self._path, lambda sample: sample.get("rollout", -1) < rollout)
        self._is_trimmed = True
        append_samples(self._path, [{"rollout": rollout, **sample} for sample in samples])
        for sample in samples[:NUM_SHOWN]:
            self._report(f"rollout {rollout}  score {sample['score']:.3f}  {_excerpt(sample['response'])!r}")


def as_messages(prompt: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A prompt as `samples.jsonl` holds it; a text, of a model without a chat template, is one message.

    What JSON has no form for, as a time in a row of Parquet, is its text.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    plain: list[Mapping[str, Any]] = json.loads(json.dumps(messages, default=str))
    return plain


def readable(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A row of `metrics.sample_rows` as `samples.jsonl` holds it: messages and text."""
    prompt, response = row["prompt"], row["response"]
    return {**row, "prompt": as_messages(prompt.messages), "response": answer_text(prompt.ids, response, tokenizer)}


def gather_rows(rows: Sequence[Mapping[str, Any]], ranks: Ranks, *, by: str = "sample") -> list[dict[str, Any]]:
    """The rows of all ranks, in the order of a number in them, on the main process; [] on the others. Collective."""
    encoded = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    parts = [json.loads(part.numpy().tobytes()) for part in ranks.gather_to_main(encoded)]
    return sorted((row for part in parts for row in part), key=lambda row: int(row[by]))


def _excerpt(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}..."
