"""Which recipe a configuration is for, by the sections and keys that it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmtrain.config.recipes import (
    PolicyStageConfig,
    PreferenceStageConfig,
    PretrainConfig,
    RecipeConfig,
    RewardStageConfig,
    SftConfig,
)
from llmtrain.config.sections import Section, section_of
from llmtrain.config.tokenizer import TokenizerTrainConfig

STAGE_SUFFIX = "_stage"
STAGES: dict[str, type[RecipeConfig]] = {
    "reward": RewardStageConfig,
    "preference": PreferenceStageConfig,
    "policy": PolicyStageConfig,
}
"""Section that asks for a stage of rlhf -> the schema of that stage, in the order in which stages run."""

RECIPES: dict[str, tuple[type[Section], ...]] = {
    "pretrain": (PretrainConfig,),
    "sft": (SftConfig,),
    "rlhf": tuple(STAGES.values()),
    "tokenizer": (TokenizerTrainConfig,),
}
"""Verb -> the schemas that its configurations may have."""

ANY_RECIPE = {"run", "data", "train"}
"""Sections that every recipe needs, and that so tell none."""


def fitting_recipes(file: Mapping[str, Any], tree: Mapping[str, Any]) -> list[str]:
    """The recipes that know every key of a file and find their own sections in the whole tree, overrides included."""
    if any(f"{name}{STAGE_SUFFIX}" in file for name in STAGES):
        return ["rlhf"]
    return [name for name, schemas in RECIPES.items() if any(_fits(schema, file, tree) for schema in schemas)]


def verb_of(schema: type[Section]) -> str:
    """The verb that a schema's configurations are for."""
    return next((name for name, schemas in RECIPES.items() if schema in schemas), "VERB")


def saved_schema(tree: Mapping[str, Any], path: object) -> type[RecipeConfig]:
    """The schema of a configuration that a run saved, all keys included. Raises ValueError naming its path."""
    schemas: tuple[type[RecipeConfig], ...] = (PretrainConfig, SftConfig, *STAGES.values())
    for schema in schemas:
        if _fits(schema, tree, tree):
            return schema
    raise ValueError(f"{path} is of no recipe of this version: continue with the version of llmtrain that wrote it")


def refuse_other_recipe(schema: type[Section], path: str, file: Mapping[str, Any], tree: Mapping[str, Any]) -> None:
    """Raise ValueError if a file is a configuration of other recipes than the one that `schema` is for.

    It has to have a key that `schema` does not: of one that only lacks keys, those are the fault.
    """
    own = [name for name, schemas in RECIPES.items() if schema in schemas]
    fitting = fitting_recipes(file, tree)
    if own and fitting and own[0] not in fitting and any(_unknown(schema, file)):
        raise ValueError(f"{path} is a configuration of {' or '.join(fitting)}, not of {own[0]}")


def _fits(schema: type[Section], file: Mapping[str, Any], tree: Mapping[str, Any]) -> bool:
    sections = [name for name, field in schema.model_fields.items() if section_of(field) is not None]
    if not all(isinstance(file.get(name, {}), Mapping) for name in sections):
        return False  # a section without keys, such as `run:` alone, is a fault of its own
    needed = {name for name, field in schema.model_fields.items() if field.is_required()} - ANY_RECIPE
    return needed <= tree.keys() and not any(_unknown(schema, file))


def _unknown(schema: type[Section], tree: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a tree that a schema does not have."""
    for name, value in tree.items():
        field = schema.model_fields.get(name)
        section = None if field is None else section_of(field)
        if field is None:
            yield name
        elif section is not None and isinstance(value, Mapping):
            yield from _unknown(section, value)
