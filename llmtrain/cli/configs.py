"""List the configurations that come with the package: `llmtrain configs`, or the path of one: `llmtrain configs NAME`.

A recipe and `llmtrain launch` find theirs by name: `llmtrain launch --config_file zero2 sft sft_full data.train=...`.
"""

from __future__ import annotations

import argparse
import re
from itertools import takewhile
from pathlib import Path

from llmtrain.config.shipped import shipped_configs, shipped_folders
from llmtrain.system.nearest import nearest

HEADINGS = {
    "recipes": "for llmtrain pretrain, sft, rlhf and tokenizer",
    "tokenizer": "for llmtrain tokenizer",
    "accelerate": "for llmtrain launch --config_file",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="print the path of this one only")


def run(arguments: argparse.Namespace) -> None:
    """Print names and what they are for."""
    if arguments.name is not None:
        print(path_of(arguments.name))
        return
    for kind, folder in shipped_folders().items():
        print(f"{HEADINGS[kind]}, in {folder}:")
        for name, path in shipped_configs(kind).items():
            print(f"  {name:26} {about(path)}")


def about(path: Path) -> str:
    """What a configuration is for: the first sentence of the comment that it begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("# "), lines)
    return re.split(r"[.:](?= |$)", " ".join(line.removeprefix("# ").strip() for line in comment), maxsplit=1)[0]


def path_of(name: str) -> str:
    """The path of a shipped configuration. Raises ValueError naming the nearest, if one is near."""
    every = shipped_configs(*shipped_folders())
    if name in every:
        return str(every[name])
    near = nearest(name, every)
    hint = f"the nearest is {near}" if near is not None else "`llmtrain configs` lists them"
    raise ValueError(f"{name} is not a shipped configuration: {hint}")
