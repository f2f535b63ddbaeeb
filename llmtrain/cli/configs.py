"""List the configurations that come with the package: `llmtrain configs`, or the path of one: `llmtrain configs NAME`.

A recipe finds its configuration by name; `accelerate launch` needs a path:
`accelerate launch --config_file $(llmtrain configs zero2) -m llmtrain sft sft_smollm2_lora data.train=...`.
"""

from __future__ import annotations

import argparse

from llmtrain.config.nearest import nearest
from llmtrain.config.shipped import shipped_configs, shipped_folders

HEADINGS = {
    "recipes": "for llmtrain pretrain, sft, rlhf and tokenizer",
    "tokenizer": "for llmtrain tokenizer",
    "accelerate": "for accelerate launch --config_file",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="print the path of this one only")


def run(arguments: argparse.Namespace) -> None:
    """Print names and paths."""
    if arguments.name is not None:
        print(path_of(arguments.name))
        return
    for kind in shipped_folders():
        print(f"{HEADINGS[kind]}:")
        for name, path in shipped_configs(kind).items():
            print(f"  {name:26} {path}")


def path_of(name: str) -> str:
    """The path of a shipped configuration. Raises ValueError naming the nearest, if one is near."""
    every = shipped_configs(*shipped_folders())
    if name in every:
        return str(every[name])
    near = nearest(name, every)
    hint = f"the nearest is {near}" if near is not None else "`llmtrain configs` lists them"
    raise ValueError(f"{name} is not a shipped configuration: {hint}")
