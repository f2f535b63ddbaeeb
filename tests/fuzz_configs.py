"""Configurations of one step that are right, the keys that they may have, and YAML that is not right."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml
from fuzz_values import as_json, bytes_of, damaged, value
from recipe_schemas import SCHEMAS
from tiny_run import MODEL

import llmtrain.config.recipes
import llmtrain.config.rl
import llmtrain.config.sections
from llmtrain.config.rl import ADVANTAGES, PREFERENCE_LOSSES
from llmtrain.config.sections import Section

if TYPE_CHECKING:
    from fuzz_world import World

KEPT = ("run.dir", "data.cache_dir")
"""Keys that keep what a case writes in its folder."""
TAGS = ("!!python/object/apply:os.getcwd", "!!set", "!x", "&a", "*b", "|", "!!binary")
ALIASES = ("a", *(f"b{i}" for i in range(25)))
BILLION_ALIASES = "a: &a [x, x]\n" + "".join(
    f"a{i}: &b{i} [*{before}, *{before}]\n" for i, before in enumerate(ALIASES[:-1])
)
"""Each twice the one before: 2^26 letters, if they were written out."""


def variants(recipe: str) -> list[str]:
    """The losses, or advantages, that a recipe may train with."""
    pairs = [loss for loss in PREFERENCE_LOSSES if loss != "kto"]
    return {"dpo": pairs, "kto": ["kto"], "policy": list(ADVANTAGES)}.get(recipe, [""])


def config_tree(recipe: str, world: World, folder: Path, rows: Path, variant: str = "") -> dict[str, Any]:
    """A configuration of one step that is right, with one of the recipe's `variants`."""
    variant = variant or variants(recipe)[0]
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(world.chat)},
        "data": {"train": str(rows), "max_seq_len": 256, "eval_fraction": 0.0, "cache_dir": str(folder / "cache")},
        "train": {"steps": 1, "global_batch_tokens": 256, "microbatch_tokens": 256},
        "optim": {"lr": 0.01},
        "log": {"report": False},
    }
    match recipe:
        case "pretrain":
            tree["model"] = {"config": dict(MODEL)}
            tree["tokenizer"] = {"path": str(world.base)}
        case "reward":
            tree["reward"] = {}
        case "dpo" | "kto":
            tree["preference"] = {"loss": variant} | ({"label_smoothing": 0.1} if variant == "cdpo" else {})
        case "policy":
            del tree["train"]["global_batch_tokens"]
            tree["policy"] = {"advantage": variant, "kl_placement": "loss", "kl_estimator": "k3"}
            tree["rollout"] = {
                "rewards": ["json_valid"],
                "num_prompts": 2,
                "samples_per_prompt": 2,
                "max_new_tokens": 4,
                "ppo_epochs": 1,
            }
    return tree


def set_a_key(tree: dict[str, Any], recipe: str, drawn: random.Random) -> None:
    """Give a key of a recipe another value, often one that it may have."""
    *parents, leaf = drawn.choice(KEYS[recipe]).split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[leaf] = of_its_type(tree.get(leaf), leaf, drawn) if drawn.random() < 0.8 else value(drawn)


def of_its_type(before: Any, leaf: str, drawn: random.Random) -> Any:
    """A value that the key may have, as far as one can say."""
    choices = CHOICES.get(leaf)
    if choices and drawn.random() < 0.9:
        return drawn.choice(choices)
    if isinstance(before, str):
        return before + drawn.choice(("", "x", "/", "*"))
    return drawn.choice((0, 1, 2, 3, 8, 64, 100_000, 0.1, 0.5, 0.9, 1.5, -1, True, False, None, "auto"))


def yaml_bytes(tree: Any, drawn: random.Random, *, is_changed: bool) -> bytes:
    """A tree as a file has it; `is_changed`: perhaps in YAML that is not right, or in any encoding."""
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=drawn.random() < 0.5)
    except (RecursionError, yaml.YAMLError, ValueError):
        text = as_json(tree)
    if not is_changed:
        return text.encode("utf-8", "surrogatepass")
    match drawn.randrange(16):
        case 0:
            text = f"all: &all {{a: 1}}\nrun: *all\n{text}"
        case 1:
            text += f"{text.splitlines()[0] if text else ''}\nrun: {{dir: x}}\n"
        case 2:
            text = text.replace(": ", f": {drawn.choice(TAGS)} ", 1)
        case 3:
            text = BILLION_ALIASES + text
        case 4:
            text += "? [a, b]\n: c\n1: 2\n2020-01-01: x\n.nan: y\n"
        case 5:
            text = "run: &r {again: *r}\n" + text
        case 6:
            return damaged(bytes_of(text, drawn), drawn)
        case 7:
            text = f"%YAML 9.9\n---\n{text}\n---\n{text}"
    return bytes_of(text, drawn)


def _keys() -> dict[str, list[str]]:
    def of(schema: Any, prefix: str = "") -> list[str]:
        found = []
        for name, field in schema.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                found += of(inner, f"{prefix}{name}.")
            else:
                found.append(f"{prefix}{name}")
        return found

    return {name: [key for key in of(schema) if key not in KEPT] for name, schema in SCHEMAS.items()}


def _choices() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for module in (llmtrain.config.recipes, llmtrain.config.rl, llmtrain.config.sections):
        for section in vars(module).values():
            for name, field in getattr(section, "model_fields", {}).items() if isinstance(section, type) else ():
                for part in (field.annotation, *get_args(field.annotation)):
                    if get_origin(part) is Literal:
                        found.setdefault(name, []).extend(get_args(part))
    return found


CHOICES = _choices()
"""Key -> the words that it may have."""
KEYS = _keys()
"""Recipe -> its dotted keys."""
