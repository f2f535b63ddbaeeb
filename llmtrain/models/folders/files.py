"""The files of a model's folder: their names, and whether all of them can be read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from llmtrain.system.files import one_line, read_text, require_file

MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
CARD = "README.md"
TRAINING = "training.json"  # what the card leaves out: configuration, versions, the account of the data, all values
ADAPTER_BASE = "base.json"  # weights and configuration of an adapter's base, by which it is known again
REWARD_CARD = "reward_card.json"  # in the run's folder, beside the folder of the model, or in that of an exported one


@contextmanager
def folder_named(folder: Path) -> Iterator[None]:
    """Turns an error of any class, as libraries raise for a folder that is not right, into a ValueError naming it."""
    try:
        yield
    except (ValueError, OSError, MemoryError):
        raise  # says itself what it is of
    except Exception as error:
        raise ValueError(f"{folder}: cannot be read ({one_line(error)})") from None


def find_reward_card(folder: Path) -> Path | None:
    """The card of the reward model in a folder: there, or in the run's folder around it."""
    return next((place / REWARD_CARD for place in (folder, folder.parent) if (place / REWARD_CARD).is_file()), None)


def require_readable(folder: Path) -> None:
    """Raise ValueError naming the first file of a model's folder that is cut short, empty, or not what its name says.

    Libraries pass over some of them without a word, such as a generation config that says where to stop.
    """
    for path in sorted(folder.iterdir()):
        try:
            require_file(path)
            if path.suffix == ".json":
                _require_sense(path.name, json.loads(read_text(path)))
            elif path.suffix == ".jinja" and not read_text(path).strip("\0 \n"):
                raise ValueError("it is empty")
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}): export or copy the model again") from None


def is_other_shapes(error: Exception) -> bool:
    """Whether transformers raised this for weights of other shapes than the configuration's."""
    return "ignore_mismatched_sizes" in str(error)


def require_whole(model: PreTrainedModel, missing: Collection[str]) -> None:
    """Raise ValueError for a folder that lacks weights, in whose place transformers draws others at random.

    A reward model has no head for tokens: read as a language model it lacks only that.
    """
    scores = any(name.endswith("ForSequenceClassification") for name in model.config.architectures or ())
    head = model.get_output_embeddings() if scores else None
    in_head = set() if head is None else {id(parameter) for parameter in head.parameters()}
    weights = dict(model.named_parameters())
    lost = sorted(name for name in missing if name not in weights or id(weights[name]) not in in_head)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(f"its files lack the weights {lost[0]}{more}: copy or export the model again")


def load_fault(error: Exception) -> str:
    """Why a model's folder cannot be loaded, on one line: what transformers says, where that helps."""
    if is_other_shapes(error):
        return f"its weights have other shapes than its {MODEL_CONFIG} says: they are of another model"
    if "Unrecognized configuration class" in str(error):
        return f"transformers has no causal language model for its {MODEL_CONFIG}: an encoder-decoder, or no text model"
    if "trust_remote_code=True" in str(error):
        return "it brings code of its own: read it, then set model.trust_remote_code=true"
    if "instantiate the backend tokenizer" in str(error):
        return "it holds no tokenizer: copy tokenizer.json and tokenizer_config.json of its base into it"
    if isinstance(error, KeyError):  # whose message is the key alone
        return f"transformers looks up {error} in vain"
    return one_line(error)


def _require_sense(name: str, tree: Any) -> None:
    """Raises ValueError for a configuration that is no object, and for stop tokens that are no ids."""
    if name not in (MODEL_CONFIG, TOKENIZER_CONFIG, ADAPTER_CONFIG, GENERATION_CONFIG):
        return
    if not isinstance(tree, dict):
        raise ValueError(f"it holds {type(tree).__name__}, not an object")
    stop = tree.get("eos_token_id") if name == GENERATION_CONFIG else None
    ids = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if wrong := [id_ for id_ in ids if not isinstance(id_, int) or isinstance(id_, bool)]:
        raise ValueError(f"eos_token_id holds {wrong[0]!r}, which is no id of a token")
