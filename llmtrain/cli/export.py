"""Write the model of any checkpoint of a run: `llmtrain export RUN [--step N|best|latest] [--output FOLDER]`.

For a run of any recipe, finished, stopped or killed. A run that came to its end has exported its last checkpoint itself
(with checkpoint.export_best its best) as RUN/model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmtrain.cli.options import add_dtype
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=local_path, help="a run's folder")
    parser.add_argument("--step", default="latest", help="a step's number, best or latest (default: latest)")
    parser.add_argument("--output", metavar="FOLDER", type=local_path, help="folder to write (default: RUN/model)")
    add_dtype(parser, "the run's choice")


def run(arguments: argparse.Namespace) -> None:
    """Export, into a folder that is not there yet."""
    from llmtrain.config.load import validate
    from llmtrain.config.recipes import RewardStageConfig
    from llmtrain.config.which import saved_schema
    from llmtrain.models.folders.files import REWARD_CARD
    from llmtrain.recipes.reward import write_reward_card
    from llmtrain.runs.export import MODEL, export_checkpoint
    from llmtrain.runs.folder import CHECKPOINTS, CONFIG, read_config
    from llmtrain.runs.outline import load_outline
    from llmtrain.train.checkpoint import find_checkpoint

    folder: Path = arguments.run
    output: Path = arguments.output or folder / MODEL
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: not a run's folder: it has no {CONFIG}")
    if output.exists():
        raise ValueError(f"{output} exists already: name another folder with --output, or remove that one")
    saved = read_config(folder / CONFIG)
    config = validate(saved_schema(saved, folder / CONFIG), saved)
    if arguments.dtype is not None:
        checkpoint_config = config.checkpoint.model_copy(update={"export_dtype": arguments.dtype})
        config = config.model_copy(update={"checkpoint": checkpoint_config})
    with _held(folder, output):
        checkpoint = find_checkpoint(folder / CHECKPOINTS, arguments.step)
        output.parent.mkdir(parents=True, exist_ok=True)
        export_checkpoint(folder, config, checkpoint, load_outline(folder, config), output)
        if isinstance(config, RewardStageConfig):
            card = (folder if output == folder / MODEL else output) / REWARD_CARD
            say(write_reward_card(card, folder, config, checkpoint.step))
    say(f"step {checkpoint.step} of {folder}: {output}")


@contextmanager
def _held(folder: Path, output: Path) -> Iterator[None]:
    """Hold the run's folder if the model goes there: the run itself may be about to write it."""
    from llmtrain.runs.sole_writer import sole_writer

    if not output.resolve().is_relative_to(folder.resolve()):
        yield
        return
    with sole_writer(folder, str(folder), say):
        yield
