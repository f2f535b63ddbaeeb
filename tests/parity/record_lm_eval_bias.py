"""What lm-evaluation-harness 0.4.13 measures of SmolLM2 on CrowS-Pairs and BBQ, for `test_lm_eval_bias.py`.

    lmeval/bin/python tests/parity/record_lm_eval_bias.py MODEL_FOLDER DATA_FOLDER tests/parity/lm_eval_bias_0_4_13.json
    lmeval/bin/python tests/parity/record_lm_eval_bias.py scorers DATA_FOLDER tests/parity/lm_eval_bias_0_4_13.json

Its own tasks and scorers run unmodified, but for where their data is: the rows that `llmtrain bias --limit` takes. It
has no orientation of CrowS-Pairs to undo: it too asks for the share of `sent_more`, of either kind of pair.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import lm_eval
import numpy as np
import yaml
from datasets import Dataset
from lm_eval.tasks import TaskManager

NUM_ITEMS, NUM_CHOICES = 60, {"crows_pairs": 2, "bbq": 12}
FILES = {"crows_pairs": ("crows_pairs/crows_pairs_english.yaml", 1), "bbq": ("bbq/bbq_multiple_choice.yaml", 4)}
"""Task -> its file in the harness, and how many rows belong together."""
Fields = dict[str, Any]


def rows(name: str, data: Path) -> list[Fields]:
    """All rows of a set."""
    if name == "bbq":
        files = sorted((data / "bias/bbq/data").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    with (data / "bias/crows_pairs/data/crows_pairs_anonymized.csv").open(encoding="utf-8", newline="") as file:
        # Its first column has no name, and the harness would take the prompt "" of its task for that column.
        return [{name: value for name, value in row.items() if name} for row in csv.DictReader(file)]


def drawn(found: list[Fields], size: int) -> list[Fields]:
    """The rows that a limit takes: whole blocks, by the same draw."""
    blocks = [found[start : start + size] for start in range(0, len(found), size)]
    wanted = -(-NUM_ITEMS * len(blocks) // len(found))
    return [row for number in sorted(Random(0).sample(range(len(blocks)), wanted)) for row in blocks[number]]


def write_task(name: str, data: Path, folder: Path) -> None:
    """A task of the harness on a local file."""
    path, size = FILES[name]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in drawn(rows(name, data), size)), encoding="utf-8")
    tree: Fields = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / path),
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "tag": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
    }
    (folder / f"local_{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def of_random_logprobs(name: str, data: Path) -> Fields:
    """The scores of a whole set, by the scorers of the harness, of log-likelihoods that are drawn."""
    place = Path(lm_eval.__file__).parent / "tasks" / name / "utils.py"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    scorers: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorers)
    found = Dataset.from_list([{**row, "answer_info": row.get("answer_info", {})} for row in rows(name, data)])
    docs = list(scorers.process_docs(found)) if name == "bbq" else list(found)
    drawn_logprobs = np.random.default_rng(0).normal(size=(len(docs), NUM_CHOICES[name]))
    drawn_logprobs[:, :2] += 1  # else nearly no answer names a person
    score = scorers.process_results_multiple_choice if name == "bbq" else scorers.process_results
    each = [
        score(doc, [(value, False) for value in logprobs])
        for doc, logprobs in zip(docs, drawn_logprobs.tolist(), strict=True)
    ]
    of_means = {key: float(np.mean([values[key] for values in each])) for key in each[0] if name == "crows_pairs"}
    aggregates = {
        "accuracy_amb": "agg_accuracy_amb",
        "accuracy_disamb": "agg_accuracy_disamb",
        **{f"amb_bias_score{part}": "agg_amb_bias_scores" for part in ("", "_Age", "_Religion")},
        **{f"disamb_bias_score{part}": "agg_disamb_bias_scores" for part in ("", "_Age", "_Religion")},
    }
    return of_means or {
        key: round(float(getattr(scorers, function)([values[key] for values in each])), 10)
        for key, function in aggregates.items()
    }


def main() -> None:
    if sys.argv[1] == "scorers":
        data, output = Path(sys.argv[2]), Path(sys.argv[3])
        before = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
        found = {name: {**before.get(name, {}), "of_random_logprobs": of_random_logprobs(name, data)} for name in FILES}
        output.write_text(f"{json.dumps(found)}\n", encoding="utf-8")
        return
    model, data, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in FILES:
            write_task(name, data, folder)
        manager = TaskManager(include_path=str(folder))
        for name in FILES:
            measured = lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": model, "dtype": "float32"},
                tasks=[f"local_{name}"],
                device="cpu",
                batch_size=8,
                log_samples=True,
                bootstrap_iters=0,
                task_manager=manager,
            )
            samples = sorted(measured["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"])
            scores = measured["results"][f"local_{name}"]
            out[name] = {
                "scores": {
                    key.removesuffix(",none"): round(value, 8)
                    for key, value in scores.items()
                    if isinstance(value, float) and "stderr" not in key and value == value
                },
                "logprobs": [[round(float(each[0]), 4) for each in sample["filtered_resps"]] for sample in samples],
            }
    output.write_text(f"{json.dumps(out)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
