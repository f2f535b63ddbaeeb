"""Folders of runs written by hand: what a report is to show is known, and no training is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from recipe_schemas import SCHEMAS

from llmtrain.config.load import validate
from llmtrain.data.ledger import SourceLedger, Tally, TokenTally

OWN_SECTIONS: dict[str, dict[str, Any]] = {
    "pretrain": {"model": {"preset": "1m"}, "tokenizer": {"path": "tokenizer"}},
    "sft": {"model": {"path": "base"}, "adapter": {"kind": "lora", "rank": 8}},
    "reward": {"model": {"path": "base"}, "reward": {}},
}


def write_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    recipe: str = "sft",
    events: Sequence[Mapping[str, Any]] = (),
    is_finished: bool = True,
    ledger: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Path:
    """A run's folder with these rows of metrics; `sections` are added to its configuration."""
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {
        "run": {"dir": str(folder)},
        "data": {"train": "rows.jsonl", "max_seq_len": 64},
        "train": {"steps": 100, "global_batch_tokens": 1024, "microbatch_tokens": 256},
        **OWN_SECTIONS[recipe],
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    config = yaml.safe_dump(validate(SCHEMAS[recipe], tree).model_dump(), sort_keys=False)
    (folder / "config.yaml").write_text(config)
    if is_finished:
        (folder / "finished.yaml").write_text(config)
    environment = {"device": "cpu", "cpus": 2, "world_size": 1, "engine": "single", "packages": {"torch": "2.9"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "ledger.json").write_text(json.dumps(write_ledger() if ledger is None else ledger))
    write_lines(folder / "metrics.jsonl", rows)
    if events:
        write_lines(folder / "events.jsonl", events)
    return folder


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_ledger(**training: Any) -> dict[str, Any]:
    """The ledger of a source of 100 rows: 3 bad ones, 5 dropped for one reason and 2 for another, 10 held out."""
    source = SourceLedger(
        path="rows.jsonl",
        read=Tally(100, 5000),
        bad_rows={"not JSON": Tally(3, 100)},
        dropped={"no answer": Tally(5, 200), "too long": Tally(2, 900)},
        row_format="messages",
        kept={"train": Tally(80, 3300), "eval": Tally(10, 500)},
    )
    source.tokens["train"] = TokenTally(
        tokens=4000, text_tokens=4000, trained_tokens=1500, masked_tokens=2500, truncated_tokens=600, rows_cut=4
    )
    source.check()
    whole = {"steps": 20, "tokens_trained": 2900, "tokens_per_epoch": 1480, "epochs": 2.0, **training}
    return {"train": [asdict(source)], "eval": [], "training": whole}


def curves(num_steps: int, *, every: int = 10, start: float = 4.0) -> list[dict[str, Any]]:
    """Rows of a run whose losses fall in a line, evaluated every so many steps."""
    rows = [{"step": 0, "elapsed_seconds": 0.0, "train_seconds": 0.0, "eval_loss": start}]
    for step in range(1, num_steps + 1):
        loss = start - 2 * step / num_steps
        row = {"step": step, "elapsed_seconds": step / 10, "train_seconds": step / 12, "loss": loss, "lr": 1e-3}
        speed = {"tokens_per_second": 1000.0 + step, "mfu": 0.2, "memory_bytes": 500_000_000}
        rows.append({**row, "grad_norm": 1.0, "tokens": 100 * step, "epoch": step / 50, **speed})
        if step % every == 0:
            rows.append({"step": step, "elapsed_seconds": step / 10, "train_seconds": step / 12, "eval_loss": loss})
    return rows
