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

Form = Literal["hub", "folder", "gguf", "adapter"]
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
    """The origin that an adapter's folder says about its base; None: nothing but `adapter_config.json` does."""
    origin = read_base(adapter_folder).get("origin")
    return None if origin is None else Origin(**origin)


def read_base(adapter_folder: Path) -> Mapping[str, Any]:
    """What an adapter's folder says about its base; {}: nothing."""
    path = adapter_folder / ADAPTER_BASE
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
