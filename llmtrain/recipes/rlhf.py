"""Preferences to a reward model, prompts and rewards to a policy: `python recipes/rlhf.py CONFIG.yaml [key=value ...]`.

A configuration with a section `reward` trains a reward model; one with a section `policy` trains a policy by PPO and
its family, with a trained reward model or rewards that can be computed; one with a section `preference` trains a
policy on preferences alone, by DPO and its kin. One with sections `reward_stage` and `policy_stage` does both in turn.
The same command runs on one process, and on several under
`accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/rlhf.py CONFIG.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llmtrain.config.load import load_tree, sections_of
from llmtrain.config.recipes import PolicyStageConfig, PreferenceStageConfig, RewardStageConfig
from llmtrain.recipes.command import run_on_arguments, run_recipe, say_once
from llmtrain.recipes.policy import run_policy_stage
from llmtrain.recipes.preference import run_preference_stage
from llmtrain.recipes.reward import run_reward_stage
from llmtrain.runs import stages
from llmtrain.runs.stages import Stage, run_stages, stage_configs, stages_of

STAGES = {
    "reward": Stage(RewardStageConfig, run_reward_stage),
    "preference": Stage(PreferenceStageConfig, run_preference_stage),
    "policy": Stage(PolicyStageConfig, run_policy_stage),
}


def main(argv: Sequence[str]) -> None:
    """Run the stage that the configuration is for."""
    sections = sections_of(argv)
    asked = [name for name in STAGES if name in sections] or ["reward"]
    if stages_of(sections, STAGES) or len(asked) > 1:
        run_on_arguments(str(stages.__doc__), run_file)
    else:
        run_recipe(STAGES[asked[0]].schema, STAGES[asked[0]].run)


def run_file(argv: Sequence[str]) -> None:
    """Run all stages of a file."""
    run_stages(stage_configs(load_tree(argv), STAGES), STAGES, say_once)


if __name__ == "__main__":
    main(sys.argv[1:])
