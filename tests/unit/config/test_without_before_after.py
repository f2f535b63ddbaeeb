"""Runs that are compared anyway turn the comparison of before and after off, in each recipe that has it."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain.config.load import set_dotted, validate
from llmtrain.config.recipes import (
    PolicyStageConfig,
    PreferenceStageConfig,
    RecipeConfig,
    RewardStageConfig,
    SftConfig,
    without_before_after,
)

OWN: dict[type[RecipeConfig], dict[str, Any]] = {
    SftConfig: {},
    PreferenceStageConfig: {"preference": {}},
    PolicyStageConfig: {"policy": {}, "rollout": {"rewards": ["gsm8k"]}},
    RewardStageConfig: {"reward": {}},
}


@pytest.mark.parametrize("schema", OWN)
@pytest.mark.parametrize("evaluation", [{}, {"general_text": "x.txt"}, {"samples": 0, "sample_tokens": 16}])
def test_a_configuration_without_the_pair_is_accepted(schema: type[RecipeConfig], evaluation: dict[str, Any]) -> None:
    tree: dict[str, Any] = {
        "run": {"dir": "run"},
        "model": {"path": "model"},
        "data": {"train": "rows.jsonl", "eval_fraction": 0.1, "max_seq_len": 64},
        "train": {"steps": 2, "microbatch_tokens": 64},
        "eval": evaluation,
        **OWN[schema],
    }
    if schema is not PolicyStageConfig:
        tree["train"]["global_batch_tokens"] = 64
    if schema is RewardStageConfig or (schema is PolicyStageConfig and "sample_tokens" in evaluation):
        tree["eval"] = {}
    overrides = without_before_after(validate(schema, tree))
    for key, value in overrides.items():
        set_dotted(tree, key, value)
    assert validate(schema, tree).eval.before_after == (32 if schema is RewardStageConfig else 0)
