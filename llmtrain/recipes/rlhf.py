"""Preferences to a reward model, prompts and rewards to a policy: `llmtrain rlhf CONFIG [key=value ...]`.

A configuration with a section `reward` trains a reward model; one with a section `policy` trains a policy by PPO and
its family, with a trained reward model or rewards that can be computed; one with a section `preference` trains a
policy on preferences alone, by DPO and its variants. One with sections `reward_stage` and `policy_stage` does both in
turn.

    llmtrain rlhf ppo_smollm2_brief data.train=my_prompts.jsonl
    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/rlhf.py \
        recipes/configs/rlhf_smollm2_hh.yaml data.train=hh_harmless.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from llmtrain.config import stages
from llmtrain.config.help import help_text
from llmtrain.config.load import load_tree
from llmtrain.config.stages import Stages, load_stages, schema_of
from llmtrain.config.which import STAGE_SUFFIX, STAGES
from llmtrain.recipes.command import asks_for_help, prepare_process, print_text, resumable_command, say_once
from llmtrain.recipes.early import check_stages
from llmtrain.system.stop_signal import StopSignal


def start(stop: StopSignal, argv: Sequence[str] | None = None) -> None:
    """Read `CONFIG.yaml [key=value ...]` and run the stages that it is for; `argv` None: the command line's."""
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        print_text(usage([word for word in argv if not word.startswith("-")]))
        return
    asked = load_stages(argv)
    check_stages(asked.configs)
    prepare_process()
    main(asked, stop)


def main(asked: Stages, stop: StopSignal) -> None:
    """Run the stage that a configuration is for, or several in turn."""
    with stop.deferred():
        from llmtrain.recipes.policy import run_policy
        from llmtrain.recipes.preference import run_preference
        from llmtrain.recipes.reward import run_reward
        from llmtrain.runs.stages import RunStage, run_stages

    runs: dict[str, RunStage] = {
        "reward": partial(run_reward, stop=stop),
        "preference": partial(run_preference, stop=stop),
        "policy": partial(run_policy, stop=stop),
    }
    if asked.in_turn:
        run_stages(asked.configs, runs, say_once)
    else:
        ((name, config),) = asked.configs.items()
        runs[name](config)


def usage(argv: Sequence[str]) -> str:
    """What `--help` prints: the keys of the stage that the rest of the command line asks for, of none those of all."""
    try:
        tree = load_tree(argv, "rlhf")
    except ValueError:  # no configuration yet, or one that the run will refuse
        tree = {}
    if any(name.endswith(STAGE_SUFFIX) for name in tree):
        return str(stages.__doc__)
    if not any(name in tree for name in STAGES):
        return help_text(*STAGES.values())
    return help_text(schema_of(tree))


if __name__ == "__main__":
    with resumable_command() as stop:
        start(stop)
