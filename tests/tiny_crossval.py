"""`llmtrain crossval` with its recipes in the same process, also a forked one: nothing is imported again."""

from __future__ import annotations

from pathlib import Path

from tiny_run import RLHF, SFT, run_here

from llmtrain.cli import crossval
from llmtrain.cli.main import main


def recipe_here(verb: str, arguments: list[str]) -> int:
    """Run a recipe in this process, as `tune.child.run_recipe` does in another."""
    ended = run_here(Path(arguments[0]), *arguments[1:], recipe=SFT if verb == "sft" else RLHF)
    print(ended.out, ended.err)
    return ended.code


def crossval_here(*argv: str) -> None:
    """The command, which keeps to this process from now on."""
    crossval.run_recipe = recipe_here
    main(["crossval", *argv])
