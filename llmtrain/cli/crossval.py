"""Cross-validate a recipe: `llmtrain crossval CONFIG --folds K [--by KEY] [--dir DIR] [key=value ...]`.

The rows of data.train are divided into K folds. K runs follow, each on all folds but one, and each model predicts the
rows of the fold that it never saw. Takes configurations of SFT, reward models and preferences (DPO and its variants,
KTO). Rows of one conversation, or of one question where answers are compared, are in one fold; with --by KEY all rows
of one value of that field. The same command goes on where it was stopped, and may run in several processes at once.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.system.exit_codes import EXIT_INTERRUPTED
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say
from llmtrain.tune.child import Stopped, run_recipe

if TYPE_CHECKING:
    from llmtrain.config.recipes import RecipeConfig
    from llmtrain.tune.crossval.plan import Plan

INSTEAD = {
    "pretrain": "its documents are so many that one held-out share is enough: data.eval_fraction",
    "policy": "a policy trains on what it samples, and rewards judge it: hold prompts out by data.eval_fraction",
    "tokenizer": "it has no model to evaluate",
}
"""Recipe without folds -> why not, and what there is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped configuration")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="as for the recipe")
    parser.add_argument("--folds", type=int, required=True, metavar="K", help="folds, and so runs; at least 2")
    parser.add_argument("--by", metavar="KEY", help="field of the rows whose equal values stay in one fold: author")
    parser.add_argument("--dir", type=local_path, help="folder of the folds (default: that of run.dir, with -crossval)")


def run(arguments: argparse.Namespace) -> None:
    """Make the folds, train and predict each, report."""
    from llmtrain.tune.crossval.plan import make_plan
    from llmtrain.tune.crossval.runs import run_folds

    config = folds_config([arguments.config, *arguments.overrides])
    folder = arguments.dir or Path(f"{config.run.dir.rstrip('/')}-crossval")
    plan = make_plan(config, arguments.folds, arguments.by, folder, say)
    for line in described(plan):
        say(line)
    try:
        run_folds(plan, run_recipe, _predict, say)
    except (Stopped, KeyboardInterrupt) as stopped:
        say("stopped: the same command goes on from here")
        raise SystemExit(stopped.exit_code if isinstance(stopped, Stopped) else EXIT_INTERRUPTED) from None
    _report(plan, [arguments.config, *arguments.overrides])


def folds_config(argv: list[str]) -> RecipeConfig:
    """The configuration of a recipe that folds can be made of. Raises ValueError for any other, saying why."""
    from llmtrain.config.load import config_of, read_given
    from llmtrain.config.recipes import SftConfig
    from llmtrain.config.stages import stages_of
    from llmtrain.config.which import STAGE_SUFFIX, fitting_recipes
    from llmtrain.tune.crossval.plan import VERBS

    given = read_given(argv, "crossval")
    tree = given.tree
    if any(name.endswith(STAGE_SUFFIX) for name in tree):
        raise ValueError(f"{argv[0]} has several stages: cross-validate one, with a file that has its sections alone")
    if "policy" in tree:
        raise ValueError(f"{argv[0]} trains a policy: {INSTEAD['policy']}")
    recipes = fitting_recipes(tree, tree)
    refused = next((name for name in recipes if name in INSTEAD), None)
    if refused is not None and not {"sft", "rlhf"} & set(recipes):
        raise ValueError(f"{argv[0]} is a configuration of {refused}: {INSTEAD[refused]}")
    if {"reward", "preference"} & tree.keys():
        (config,) = stages_of(given).configs.values()
    else:
        config = config_of(SftConfig, given)
    assert type(config) in VERBS, type(config)
    return config


def described(plan: Plan) -> list[str]:
    """What the folds are, in lines for the user."""
    config = plan.config
    sizes = [sum(rows) for rows in plan.fold_rows]
    lines = [
        f"{plan.num_used:,} rows in {plan.num_groups:,} groups by {plan.grouped_by}: {plan.num_folds} folds of "
        f"{min(sizes):,} to {max(sizes):,} rows, in {plan.folder}"
    ]
    if plan.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in plan.dropped.items())
        lines.append(f"{sum(plan.dropped.values()):,} rows are left out: {reasons}")
    if plan.split_contents:
        lines.append(
            f"warning: {plan.split_contents:,} rows' contents are in several groups by {plan.by}, so that the "
            "same may be trained on and held out"
        )
    if config.data.eval is not None:
        lines.append("data.eval is not used: each fold holds out its own rows of data.train")
    if config.exports_best:
        lines.append(
            "warning: eval.patience and checkpoint.export_best choose the checkpoint by the held-out fold itself, so "
            "the result is a little too good"
        )
    return lines


def _predict(plan: Plan, fold: int) -> None:
    from llmtrain.recipes.command import prepare_process

    prepare_process()
    from llmtrain.tune.crossval.predictions import predict_fold

    predict_fold(plan, fold)


def _report(plan: Plan, argv: list[str]) -> None:
    """Write and print the result; processes that share the folds do it one after the other."""
    from llmtrain.system.files import exclusive, one_line
    from llmtrain.tune.crossval.summary import PREDICTIONS, collect

    command = f"llmtrain {plan.verb} {shlex.join(argv)}"
    with exclusive(plan.folder, say, "--dir"):
        result = collect(plan)
        left_out = f", {sum(result.dropped.values()):,} rows left out" if result.dropped else ""
        say(f"{len(result.items):,} items predicted, each once{left_out}: {plan.folder / PREDICTIONS}")
        for average in result.averages:
            say(str(average))
        try:
            from llmtrain.tune.crossval.page import write_page

            say(f"report: {write_page(result, command)}")
        except Exception as error:  # whatever it is, the folds are well
            say(f"warning: no report: {one_line(error)}")
    say(f"the model to use is trained on all rows: {command}")
