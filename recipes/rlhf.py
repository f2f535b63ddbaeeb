"""Preferences to a reward model, prompts and rewards to a policy: `python recipes/rlhf.py CONFIG.yaml [key=value ...]`.

A configuration with a section `reward` trains a reward model; one with a section `policy` trains a policy by PPO and
its family, with a trained reward model or rewards that can be computed. The same command runs on one process, and on
several under `accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/rlhf.py CONFIG.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llmtrain.cli.recipe import run_recipe
from llmtrain.config_file import sections_of
from llmtrain.policy_stage import run_policy_stage
from llmtrain.reward_stage import run_reward_stage
from llmtrain.schemas import PolicyStageConfig, RewardStageConfig


def main(argv: Sequence[str]) -> None:
    """Run the stage that the configuration is for."""
    if "policy" in sections_of(argv):
        run_recipe(PolicyStageConfig, run_policy_stage)
    else:
        run_recipe(RewardStageConfig, run_reward_stage)


if __name__ == "__main__":
    main(sys.argv[1:])
