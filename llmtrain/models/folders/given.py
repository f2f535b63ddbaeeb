"""What a path or `model.path` names -> what `transformers` and this package open: a folder, or a name of the hub.

A run's folder means its model, a GGUF file the folder that it is converted to, once. The folder may be an
adapter's: whoever opens it adds the adapter into its base in memory. So a policy can start from the run that tuned it:
`model.path=runs/sft`.
"""

from __future__ import annotations

from pathlib import Path

from llmtrain.models.folders import gguf
from llmtrain.models.folders.files import ADAPTER_CONFIG, MODEL_CONFIG
from llmtrain.protocols import Report
from llmtrain.system.paths import checkpoint_hint, is_local, local_path
from llmtrain.system.terminal import say


def given_folder(path: str, report: Report = say) -> str:
    """The model folder, or hub id, of `path`.

    Raises ValueError for a file or package that is not there or cannot be converted, for a folder that holds no model,
    and for a run without one, with what to give.
    """
    if not path.endswith(".gguf") and not local_path(path).is_dir() and not is_local(path):
        return path
    folder = model_folder(path, report)
    return path if folder == Path(path) else str(folder)


def model_folder(path: str, report: Report = say) -> Path:
    """The folder of a model, from its own path, that of a run or of a GGUF file. Raises ValueError if there is none."""
    if path.endswith(".gguf"):
        return Path(gguf.resolved_path(path, report))
    folder = local_path(path)
    for candidate in (folder, folder / "model"):
        if is_model(candidate) or is_adapter(candidate):
            return candidate
    if (folder / "checkpoints").is_dir():
        raise ValueError(f"{path}: this run has no model yet: start its command again, or `llmtrain export {path}`")
    if hint := checkpoint_hint(folder):
        raise ValueError(f"{path}: {hint}")
    raise ValueError(f"{path}: neither a run's folder nor a model's")


def is_model(folder: Path) -> bool:
    """Whether a folder holds a whole model."""
    return (folder / MODEL_CONFIG).is_file()


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter."""
    return (local_path(folder) / ADAPTER_CONFIG).is_file()
