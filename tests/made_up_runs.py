"""Folders of runs of every recipe as training leaves them, written in milliseconds: no model, made-up curves.

The same functions as in training make the reports of evaluations, so the pages read what they will really find.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from recipe_schemas import SCHEMAS

from llmtrain.eval import kto, pairs
from llmtrain.train.run_log import _plain

STEPS = 60
EVERY = 10
RECIPES = tuple(SCHEMAS)

Text = Callable[[str], str]


def write_run(folder: Path, recipe: str, *, text: Text = str, seed: int = 0) -> Path:
    """A finished run in `folder`; `text` is put around every string that comes from outside, such as an answer."""
    drawn = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(recipe, text), allow_unicode=True), encoding="utf-8")
    rows = [*train_rows(recipe, drawn), *eval_rows(folder, recipe, drawn)]
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "events.jsonl", events(text))
    write_lines(folder / "samples.jsonl", samples(recipe, text, drawn))
    (folder / "environment.json").write_text(json.dumps(environment(text)))
    (folder / "ledger.json").write_text(json.dumps(ledger(text)))
    (folder / "finished.yaml").write_text("{}")
    return folder


def config(recipe: str, text: Text) -> dict[str, Any]:
    """The whole configuration, defaults included."""
    tree: dict[str, Any] = {
        "run": {"dir": "runs/made-up"},
        "model": {"path": text("some-model")},
        "data": {"train": [text("rows.jsonl"), text("more.jsonl")], "eval_fraction": 0.1, "max_seq_len": 128},
        "train": {"steps": STEPS},
    }
    match recipe:
        case "pretrain":
            tree |= {"model": {"preset": "1m"}, "tokenizer": {"path": text("tokenizer")}}
        case "reward":
            tree["reward"] = {}
        case "dpo" | "kto":
            tree["preference"] = {"loss": recipe}
        case "policy":
            tree |= {"policy": {}, "rollout": {"rewards": [text("good.py:good"), text("kind.py:kind")]}}
            tree["data"].pop("max_seq_len")
    dumped: dict[str, Any] = SCHEMAS[recipe].model_validate(tree).model_dump(mode="json")
    return dumped


def train_rows(recipe: str, drawn: np.random.Generator) -> Iterator[dict[str, Any]]:
    for step in range(1, STEPS + 1):
        done = step / STEPS
        row = {
            "step": step,
            "epoch": 3 * done,
            "elapsed_seconds": 2.0 * step,
            "train_seconds": 1.5 * step,
            "loss": 2 * math.exp(-2 * done) + 0.1 * drawn.random(),
            "lr": 1e-3 * (1 - 0.9 * done),
            "grad_norm": 1 + drawn.random(),
            "tokens": 1000 * step,
            "tokens_per_second": 1000 + 50 * drawn.random(),
            "mfu": 0.3,
            "memory_bytes": 10**9,
        }
        if recipe in ("pretrain", "sft"):
            row["error_rate"] = 0.6 * math.exp(-done)
        elif recipe in ("reward", "dpo", "kto"):
            row |= {"accuracy": 0.5 + 0.4 * done, "margin": 2 * done, "kl": done}
        else:
            row |= {
                "rollout_score": 2 * done + 0.1 * drawn.random(),
                "rollout_score/good.py:good": math.sin(3 * done) + 0.02 * drawn.random(),
                "rollout_score/kind.py:kind": 2 * done - math.sin(3 * done),
                "rollout_kl": 8 * done**2,
                "rollout_response_tokens": 20 + 40 * done + drawn.random(),
                "rollout_terminated_ratio": 0.9,
                "rollout_explained_variance": done,
                "rollout_zero_variance_groups": 0.1,
                "entropy": 3 * math.exp(-3 * done),
                "clip_fraction": 0.1 + 0.02 * drawn.random(),
                "approx_kl": 0.01,
                "value_loss": math.exp(-done),
            }
        yield row


def eval_rows(folder: Path, recipe: str, drawn: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The rows of evaluations; those that report more write it into the folder."""
    (folder / "evaluations").mkdir()
    for step in range(0, STEPS + 1, EVERY):
        done = step / STEPS
        row: dict[str, Any] = {"step": step, "elapsed_seconds": 2.0 * step, "train_seconds": 1.5 * step}
        row["eval_loss"] = 2 * math.exp(-2 * done) + 0.1
        match recipe:
            case "pretrain" | "sft":
                row |= {"eval_error_rate": 0.6 * math.exp(-done), "eval_terminated_ratio": done}
            case "reward" | "dpo":
                row |= pairs.evaluation(pairs.report_of(pair_scores(done, drawn), 2))
                row |= {"eval_chosen_reward": done, "eval_rejected_reward": -done} if recipe == "dpo" else {}
            case "kto":
                report = kto.report_of(answer_rewards(done, drawn), 0.1)
                row |= {"eval_accuracy": 0.5 + 0.4 * done, "eval_auc": report["auc"], "report": report}
                row |= {"eval_desirable_reward": done, "eval_undesirable_reward": -done, "eval_kl": done}
            case "policy":
                score = 1.5 - (done - 0.5) ** 2
                row |= {"eval_score": score, "eval_score_low": score - 0.05, "eval_score_high": score + 0.05}
                row |= {"eval_loss": -score, "eval_response_tokens": 20 + 40 * done, "eval_terminated_ratio": 0.9}
        if (report := row.pop("report", None)) is not None:
            (folder / "evaluations" / f"step-{step:08d}.json").write_text(json.dumps(_plain(report)))
        yield _plain(row)


def pair_scores(done: float, drawn: np.random.Generator, count: int = 200) -> pairs.PairScores:
    """Scores that the longer answer helps."""
    lengths = drawn.integers(3, 60, (2, count)).astype(float)
    scores = drawn.normal(0, 1, (2, count)) + 0.03 * lengths + np.array([[2 * done], [0.0]])
    return pairs.PairScores(*scores, *lengths, np.ones(count), drawn.integers(0, 2, count).astype(float))


def answer_rewards(done: float, drawn: np.random.Generator, count: int = 200) -> kto.AnswerRewards:
    labels = drawn.integers(0, 2, count).astype(float)
    rewards = drawn.normal(0, 1, count) + 2 * done * labels
    return kto.AnswerRewards(labels, rewards, drawn.integers(3, 60, count).astype(float), np.ones(count))


def events(text: Text) -> Iterator[dict[str, Any]]:
    yield {"time": "2026-01-02T03:04:05+00:00", "event": "started", "step": 0}
    yield {"time": "2026-01-02T03:04:35+00:00", "event": "skipped", "step": 12}
    yield {"time": "2026-01-02T03:05:05+00:00", "event": "interrupted", "step": 30, "reason": text("SIGTERM")}
    yield {"time": "2026-01-02T03:06:05+00:00", "event": "resumed", "step": 30}
    yield {"time": "2026-01-02T03:07:05+00:00", "event": "failed", "step": 50, "reason": text("no more memory")}
    yield {"time": "2026-01-02T03:08:05+00:00", "event": "finished", "step": STEPS, "outcome": "finished"}


def samples(recipe: str, text: Text, drawn: np.random.Generator) -> Iterator[dict[str, Any]]:
    for step in range(0, STEPS + 1, EVERY):
        for index in range(4):
            yield {
                "step": step,
                "index": index,
                "prompt": [{"role": text("user"), "content": text(f"question {index}")}],
                "response": text(f"answer {index} at step {step}"),
                "reference": text(f"the right answer {index}"),
                "stopped": bool(step),
                **({"score": 0.5} if recipe == "policy" else {}),
            }
    for rollout in range(20 if recipe == "policy" else 0):
        for sample in range(8):
            words = int(drawn.integers(5, 12)) + rollout
            yield {
                "rollout": rollout,
                "sample": 8 * rollout + sample,
                "prompt": [{"role": "user", "content": text(f"question {sample // 2}")}],
                "response": text(" ".join(f"w{drawn.integers(40 - 2 * rollout)}" for _ in range(words))),
                "score": words / 10,
                "stopped": True,
            }


def environment(text: Text) -> dict[str, Any]:
    return {
        "started": "2026-01-02T03:04:05+0000",
        "command": [text("llmtrain"), text("config.yaml")],
        "platform": text("Linux"),
        "python": "3.11",
        "cpus": 2,
        "device": text("cpu"),
        "engine": "single",
        "world_size": 1,
        "packages": {"llmtrain": "0.1", "torch": text("2.0"), "transformers": "5.0"},
        "parameters": 1_000_000,
        "trained_parameters": 1_000_000,
    }


def ledger(text: Text) -> dict[str, Any]:
    """An account of two sources."""
    names = ("tokens", "text_tokens", "unknown_tokens", "added_tokens", "unpredicted_tokens", "trained_tokens")
    others = ("masked_tokens", "truncated_tokens", "dropped_tokens", "rows_cut", "rows_split", "rows_unrolled")
    counts = dict.fromkeys(names + others, 0) | {"tokens": 900, "text_tokens": 800, "trained_tokens": 700}
    source = {
        "files": 1,
        "files_not_read": {},
        "text_field": None,
        "row_format": "messages",
        "read": {"documents": 100, "bytes": 9000},
        "bad_rows": {text("no answer"): {"documents": 2, "bytes": 40}},
        "dropped": {text("too long"): {"documents": 3, "bytes": 60}},
        "kept": {"train": {"documents": 85, "bytes": 8000}, "eval": {"documents": 10, "bytes": 900}},
        "tokens": {"train": counts, "eval": counts},
    }
    sources = [{"path": text(path)} | source for path in ("rows.jsonl", "more.jsonl")]
    return {"train": sources, "eval": [], "training": {"steps": STEPS, "tokens_trained": 60_000, "epochs": 3.0}}


def write_lines(path: Path, rows: Iterator[Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
