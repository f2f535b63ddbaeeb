"""The schema of each kind of run."""

from __future__ import annotations

from llmtrain.config.recipes import (
    PolicyStageConfig,
    PreferenceStageConfig,
    PretrainConfig,
    RecipeConfig,
    RewardStageConfig,
    SftConfig,
)

SCHEMAS: dict[str, type[RecipeConfig]] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "reward": RewardStageConfig,
    "dpo": PreferenceStageConfig,
    "kto": PreferenceStageConfig,
    "policy": PolicyStageConfig,
}
