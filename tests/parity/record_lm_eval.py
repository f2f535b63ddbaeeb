"""What lm-evaluation-harness 0.4.13 measures of SmolLM2 on local files, for `test_lm_eval.py`; run by hand, once.

    python -m venv lmeval && lmeval/bin/pip install lm-eval==0.4.13 transformers accelerate -c constraints.txt
    lmeval/bin/python tests/parity/record_lm_eval.py MODEL_FOLDER DATA_FOLDER tests/parity/lm_eval_0_4_13.json

Its own tasks run unmodified, but for where their data is and, of GSM8K, which rows are the examples and how long an
answer may be. Rows are put into the form that each task reads. Only numbers and hashes of answers are written.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager, get_task_dict

NUM_ITEMS, NUM_SHOTS, MAX_NEW_TOKENS = 50, 5, 128
LETTERS = "ABCDEFGH"
GOLD = ("... #### 42", "x #### 1,234", "#### -7", "#### 3.5", "#### 10")
ANSWERS = (
    *("#### 42", "the answer is 42.", "#### 1,234.", "$1,234", "so -7", "#### -7 apples", "3.5", "3.5.", "#### 3.50"),
    *("10 and 11", "#### 10\n#### 11", "no number", "", "#### $42", "42%", "#### 42.0", "#### 10.", "10."),
    *("1234 dollars", "cost $10.", "...", "#### ,", "$$"),
)
"""Answers made up for the scores of GSM8K."""
Fields = dict[str, Any]


def rows(path: Path, count: int = NUM_ITEMS) -> list[Fields]:
    """The first rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]


def arc(data: Path) -> Iterator[Fields]:
    for row in rows(data / "eval/llmfoundry_eval/world_knowledge/arc_easy.jsonl"):
        labels = list(LETTERS[: len(row["choices"])])
        choices = {"text": row["choices"], "label": labels}
        yield {
            "question": row["query"].removeprefix("Question: "),
            "choices": choices,
            "answerKey": labels[row["gold"]],
        }


def piqa(data: Path) -> Iterator[Fields]:
    for row in rows(data / "eval/llmfoundry_eval/commonsense_reasoning/piqa.jsonl"):
        goal = row["query"].removeprefix("Question: ").removesuffix("\n")
        yield {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def winogrande(data: Path) -> Iterator[Fields]:
    for row in rows(data / "eval/llmfoundry_eval/language_understanding/winogrande.jsonl"):
        first, second = (option.split(" ") for option in row["context_options"])
        same = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        yield {
            "sentence": " ".join([*first[:same], "_", row["continuation"]]),
            "option1": " ".join(first[same:]),
            "option2": " ".join(second[same:]),
            "answer": str(row["gold"] + 1),
        }


def copa(data: Path) -> Iterator[Fields]:
    asked = {"because": "cause", "therefore": "effect"}
    for row in rows(data / "eval/llmfoundry_eval/commonsense_reasoning/copa.jsonl"):
        found = re.fullmatch(r"(.*), (because|therefore)", row["query"])
        assert found is not None, row
        first, second = row["choices"]
        fields = {"premise": f"{found[1]}.", "question": asked[found[2]]}
        yield {**fields, "choice1": first, "choice2": second, "label": row["gold"]}


def gsm8k(data: Path) -> Iterator[Fields]:
    yield from rows(data / "verifiable/gsm8k/train.jsonl", NUM_ITEMS + NUM_SHOTS)


TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", arc, "test"),
    "piqa": ("piqa/piqa.yaml", piqa, "validation"),
    "winogrande": ("winogrande/default.yaml", winogrande, "validation"),
    "copa": ("super_glue/copa/default.yaml", copa, "validation"),
    "gsm8k": ("gsm8k/gsm8k.yaml", gsm8k, "test"),
}


def write_task(name: str, data: Path, folder: Path) -> None:
    """A task of the harness on a local file."""
    path, make, split = TASKS[name]
    found = list(make(data))
    files = {split: folder / f"{name}.jsonl"}
    tree: Fields = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / path),
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "tag": None,
        "training_split": None,
        {"test": "validation_split", "validation": "test_split"}[split]: None,
    }
    if name == "gsm8k":
        files["train"] = folder / "shots.jsonl"
        files["train"].write_text("".join(f"{json.dumps(row)}\n" for row in found[:NUM_SHOTS]))
        found = found[NUM_SHOTS:]
        until = ["Question:", "</s>", "<|im_end|>"]
        tree["training_split"], tree["fewshot_config"] = "train", {"sampler": "first_n"}
        kwargs = {"until": until, "do_sample": False, "temperature": 0.0, "max_gen_toks": MAX_NEW_TOKENS}
        tree["generation_kwargs"] = kwargs
    files[split].write_text("".join(f"{json.dumps(row)}\n" for row in found))
    tree["dataset_kwargs"] = {"data_files": {split: str(file) for split, file in files.items()}}
    (folder / f"local_{name}.yaml").write_text(yaml.safe_dump(tree))


def recorded(samples: list[Fields]) -> list[Fields]:
    """The numbers of each item, in order."""
    found: dict[int, Fields] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        item = found.setdefault(sample["doc_id"], {})
        if "exact_match" in sample:
            item["response"] = blake2b(sample["resps"][0][0].encode(), digest_size=8).hexdigest()
            item[{"strict-match": "strict", "flexible-extract": "flexible"}[sample["filter"]]] = sample["exact_match"]
        else:
            item["logprobs"] = [round(float(response[0]), 5) for response in sample["filtered_resps"]]
            item |= {name: sample[name] for name in ("acc", "acc_norm") if name in sample}
    return list(found.values())


def gsm8k_scores(manager: TaskManager) -> list[tuple[str, str, float, float]]:
    """(answer, right one, strict score, flexible score)."""
    task = get_task_dict(["local_gsm8k"], manager)["local_gsm8k"]
    found = []
    for gold in GOLD:
        for answer in ANSWERS:
            row = {"question": "?", "answer": gold}
            asked = Instance("generate_until", doc=row, arguments=("", {}), idx=0, metadata=("gsm8k", 0, 1))
            asked.resps = [answer]
            task._instances = [asked]
            task.apply_filters()
            filters = ("strict-match", "flexible-extract")
            scores = [task.process_results(row, [asked.filtered_resps[name]])["exact_match"] for name in filters]
            found.append((answer, gold, *scores))
    return found


def main() -> None:
    model, data, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in TASKS:
            write_task(name, data, folder)
        manager = TaskManager(include_path=str(folder))
        for name in TASKS:
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
            out[name] = recorded(measured["samples"][f"local_{name}"])
        out["gsm8k_scores"] = gsm8k_scores(manager)
    output.write_text(f"{json.dumps(out)}\n")


if __name__ == "__main__":
    main()
