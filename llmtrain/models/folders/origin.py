"""Where the base of a run comes from, as its card and its adapter's folder tell it to whoever opens them elsewhere.

A path of this machine's cache says nothing there: a GGUF file is named as it was given, an adapter's folder by its
path, and the hub's name is given where one is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmtrain.models.folders.files import ADAPTER_BASE
from llmtrain.system.files import one_line

Form = Literal["hub", "folder", "gguf", "adapter"]
COPY_AGAIN = "copy the adapter's folder again, or remove the file if you are sure of the base"
MADE: tuple[Form, ...] = ("gguf", "adapter")
"""Forms of which the folder that `transformers` opens is made here: peft alone cannot open such a base."""


@dataclass(frozen=True)
class Origin:
    """What opens a base again."""

    form: Form
    path: str  # hub id, folder, GGUF file, `PACKAGE:FILE.gguf`, or folder of an adapter that is added into its own base
    revision: str | None = None
    hub_id: str | None = None  # what the hub calls it; None: not known

    @property
    def peft_path(self) -> str | None:
        """What `adapter_config.json` names as the base; None: nothing that peft could open is known."""
        return self.hub_id if self.form in MADE else self.path

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def read_origin(adapter_folder: Path) -> Origin | None:
    """The origin that an adapter's folder says about its base; None: nothing but `adapter_config.json` does.

    Raises ValueError as `read_base` does.
    """
    origin = read_base(adapter_folder).get("origin")
    return None if origin is None else Origin(**origin)


def read_base(adapter_folder: Path) -> Mapping[str, Any]:
    """What an adapter's folder says about its base; {}: nothing. Raises ValueError for a file that is none of ours."""
    path = adapter_folder / ADAPTER_BASE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        Origin(**(found.get("origin") or {"form": "hub", "path": ""}))
        right = isinstance(found.get("weights", ""), str) and isinstance(found.get("configuration", {}), dict)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: does not say what the base is ({one_line(error)}): {COPY_AGAIN}") from None
    if not right:
        raise ValueError(f"{path}: its weights are no hash, or its configuration is no object: {COPY_AGAIN}")
    return dict(found)
