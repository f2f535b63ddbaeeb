"""What is tuned: the recipe, schema and configuration that a command line names, and the command that trains it."""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain.config.load import load_tree, set_dotted, validate
from llmtrain.config.recipes import PretrainConfig, RecipeConfig, SftConfig
from llmtrain.config.stages import is_in_turn, schema_of
from llmtrain.config.which import STAGES, fitting_recipes

VERBS = ("pretrain", "sft", "rlhf")


@dataclass(frozen=True)
class Target:
    """A configuration, as it was given and as it is validated, and the verb that trains it."""

    verb: str
    schema: type[RecipeConfig]
    tree: Mapping[str, Any]  # as given, overrides included, defaults not
    config: RecipeConfig

    def tree_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The given tree with other values of dotted keys."""
        tree = copy.deepcopy(dict(self.tree))
        for key, value in values.items():
            set_dotted(tree, key, value)
        return tree

    def refusal(self, values: Mapping[str, Any]) -> str | None:
        """Why the schema refuses these values of dotted keys; None: it takes them."""
        try:
            validate(self.schema, self.tree_with(values))
        except ValueError as error:
            return str(error)
        return None

    def command(self, config: str, launcher: str | None) -> list[str]:
        """The command that trains a configuration; `launcher`: what starts it instead of this Python."""
        prefix = [sys.executable] if launcher is None else shlex.split(launcher)
        return [*prefix, "-m", "llmtrain", self.verb, config]


def load_target(argv: Sequence[str], recipe: str | None) -> Target:
    """Read `CONFIG.yaml [key=value ...]` of whichever recipe; `recipe`: its verb, for one that fits several.

    Raises ValueError naming the file and line, or the key, or the recipes that a configuration may be for.
    """
    tree = load_tree(argv, recipe or "VERB")
    if is_in_turn(tree):
        raise ValueError(f"{argv[0]} has several stages: tune one at a time, with a configuration of that stage alone")
    verb = recipe or _verb_of(tree, argv[0])
    schema: type[RecipeConfig]
    match verb:
        case "pretrain":
            schema = PretrainConfig
        case "sft":
            schema = SftConfig
        case _:
            schema = schema_of(tree)
    return Target(verb, schema, tree, validate(schema, tree))


def _verb_of(tree: Mapping[str, Any], path: str) -> str:
    """The verb of the recipe that a tree fits; of one that fits none, the likeliest, whose faults are then named."""
    fitting = fitting_recipes(tree, tree)
    if fitting == ["tokenizer"]:
        raise ValueError(f"{path} is a configuration of tokenizer, which has no held-out loss to tune")
    fitting = [verb for verb in VERBS if verb in fitting]
    if len(fitting) > 1:
        raise ValueError(f"{path} may be a configuration of {' or '.join(fitting)}: say which, --recipe {fitting[-1]}")
    if fitting:
        return fitting[0]
    if any(name in tree for name in STAGES):
        return "rlhf"
    return "sft" if "adapter" in tree else "pretrain"
