"""Which configurations a command line of `llmtrain prepare` asks for, of whichever recipe; no torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.config.load import config_of, read_given, validate
from llmtrain.config.recipes import PretrainConfig, RecipeConfig, SftConfig
from llmtrain.config.stages import stages_of
from llmtrain.config.which import STAGE_SUFFIX, STAGES, fitting_recipes
from llmtrain.recipes.early import check_early, check_stages


def read_configs(argv: Sequence[str], recipe: str | None) -> Mapping[str, RecipeConfig]:
    """Name of recipe or stage -> its configuration, as training would read `CONFIG [key=value ...]`.

    `recipe`: for a configuration that fits several. Raises ValueError for whatever training would refuse at once, and
    for a configuration without data to prepare.
    """
    given = read_given(argv, "prepare")
    tree = given.tree
    if recipe == "rlhf" or any(name.removesuffix(STAGE_SUFFIX) in STAGES for name in tree):
        stages = stages_of(given).configs
        check_stages(stages)
        return stages
    fitting = fitting_recipes(tree, tree) if recipe is None else [recipe]
    if fitting == ["tokenizer"]:
        raise ValueError(f"{argv[0]} is a configuration of tokenizer, which reads its text once: there is no store")
    schemas: dict[str, type[RecipeConfig]] = {"pretrain": PretrainConfig, "sft": SftConfig}
    valid = [name for name, schema in schemas.items() if name in fitting and _is_valid(schema, tree)]
    if len(valid) > 1:
        raise ValueError(f"{argv[0]} may be a configuration of pretrain or sft: say which, --recipe sft")
    likely = "sft" if "adapter" in tree else "pretrain"  # of one that is no valid one, whose faults are then named
    (name, *_) = [*valid, *(each for each in fitting if each in schemas), likely]
    config = config_of(schemas[name], given)
    check_early(config)
    return {name: config}


def _is_valid(schema: type[RecipeConfig], tree: dict[str, Any]) -> bool:
    try:
        validate(schema, tree)
    except ValueError:
        return False
    return True
