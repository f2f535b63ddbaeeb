"""Add an adapter into its base: `llmtrain merge RUN_OR_ADAPTER OUTPUT` writes a plain model folder."""

from __future__ import annotations

import argparse
import shutil

from llmtrain.cli.options import add_dtype
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="RUN_OR_ADAPTER", help="a run's folder, or an adapter's")
    parser.add_argument("output", metavar="OUTPUT", type=local_path, help="folder to write")
    parser.add_argument("--base", metavar="PATH", help="where the base is (default: as the adapter's folder tells)")
    add_dtype(parser, "the base's own")


def run(arguments: argparse.Namespace) -> None:
    """Merge, into a folder that is not there yet."""
    from llmtrain.models.folders.adapter import merge_adapter
    from llmtrain.models.folders.files import ADAPTER_CONFIG, REWARD_CARD, find_reward_card, folder_named
    from llmtrain.models.folders.given import model_folder
    from llmtrain.system.precision import DTYPES, name_of

    folder = model_folder(arguments.adapter)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder}: holds a full model, not an adapter: there is nothing to merge")
    if arguments.output.exists():
        raise ValueError(f"{arguments.output}: exists already; name a folder that does not")
    with folder_named(folder):
        dtype = merge_adapter(folder, arguments.output, base=arguments.base, dtype=DTYPES.get(arguments.dtype))
    if (card := find_reward_card(folder)) is not None:  # a policy run asks it whether the model beats chance
        shutil.copyfile(card, arguments.output / REWARD_CARD)
    say(f"merged into {arguments.output}, in {name_of(dtype)}")
