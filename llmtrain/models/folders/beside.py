"""What a multimodal folder holds beside its text model: weights that no run changes, and the files of its processor.

A checkpoint has the trained weights only. An exported folder gets the others from the base, in the type that most of
its weights are saved in: equal to the byte in a folder of one type, as nearly all are. transformers maps the files of
such a folder into memory, so the base's text weights, which nothing reads, take none.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from llmtrain.models.folders.bases import Base, innermost
from llmtrain.models.folders.classes import language_class
from llmtrain.models.folders.given import given_folder
from llmtrain.models.folders.origin import Origin
from llmtrain.models.folders.saved_dtype import saved_dtype
from llmtrain.system.files import one_line
from llmtrain.system.paths import local_path

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def weights_beside(names: Collection[str], origin: Origin | None, trust_remote_code: bool) -> Mapping[str, Tensor]:
    """The base's own weights of these names. Raises ValueError if the base is not there any more, or lacks some."""
    assert origin is not None, "only a given model has weights that are not trained"
    try:
        base = _base(origin)
        shape = AutoConfig.from_pretrained(base.path, revision=base.revision, trust_remote_code=trust_remote_code)
        model = language_class(shape).from_pretrained(
            base.path,
            revision=base.revision,
            trust_remote_code=trust_remote_code,
            dtype=saved_dtype(base.path, base.revision, trust_remote_code),
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{origin.path}: the weights beside its text model are needed, and cannot be read ({one_line(error)})"
        ) from None
    found = dict(model.state_dict())
    if lacking := sorted(set(names) - set(found)):
        raise ValueError(f"{origin.path}: it has no weights {lacking[0]} any more: it is another model now")
    return {name: found[name] for name in names}


def copy_processor(folder: Path, origin: Origin | None) -> None:
    """Copy the files that say how a base's images are prepared, so that the exported folder takes images as it does."""
    if origin is None:
        return
    base = _base(origin)
    for name in PROCESSOR_FILES:
        found = cached_file(
            str(local_path(base.path)) if local_path(base.path).is_dir() else base.path,
            name,
            revision=base.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            shutil.copy(found, folder / name)


def _base(origin: Origin) -> Base:
    return innermost(given_folder(origin.path, lambda line: None), origin.revision)
