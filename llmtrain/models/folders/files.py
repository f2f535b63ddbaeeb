"""The files of a model's folder: their names, and whether all of them can be read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llmtrain.system.files import one_line

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
CARD = "README.md"
ADAPTER_BASE = "base.json"  # weights and configuration of an adapter's base, by which it is known again
REWARD_CARD = "reward_card.json"  # in the run's folder, beside the folder of the model, or in that of an exported one


def find_reward_card(folder: Path) -> Path | None:
    """The card of the reward model in a folder: there, or in the run's folder around it."""
    return next((place / REWARD_CARD for place in (folder, folder.parent) if (place / REWARD_CARD).is_file()), None)


def require_readable(folder: Path) -> None:
    """Raise ValueError naming the first file of a model's folder that is cut short or empty.

    Libraries pass over some of them without a word, such as a generation config that says where to stop.
    """
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".jinja" and not path.read_text(encoding="utf-8").strip("\0 \n"):
                raise ValueError("it is empty")
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}): export or copy the model again") from None
