"""The configurations that come with the package, found by name: `llmtrain sft sft_smollm2_lora data.train=...`.

They are kept once, in the repository's `recipes/` and `tokenizer/`; the build copies them into the wheel (`setup.py`).
"""

from __future__ import annotations

from pathlib import Path

from llmtrain.system.nearest import nearest

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folders() -> dict[str, Path]:
    """Kind of configuration (recipes, tokenizer, accelerate) -> its folder, of an installed wheel or of a checkout."""
    installed, checkout = PACKAGE / "configs", PACKAGE.parent
    if installed.is_dir():
        return {kind: installed / kind for kind in ("recipes", "tokenizer", "accelerate")}
    recipes = checkout / "recipes"
    return {"recipes": recipes / "configs", "tokenizer": checkout / "tokenizer", "accelerate": recipes / "accelerate"}


def shipped_configs(*kinds: str) -> dict[str, Path]:
    """Name -> path of the shipped configurations of these kinds, sorted within each."""
    folders = shipped_folders()
    return {path.stem: path for kind in kinds for path in sorted(folders[kind].glob("*.yaml"))}


def find_config(given: str) -> Path:
    """The file that a command names: a path that exists, else a shipped configuration of that name.

    Raises ValueError for a name (no slash, no suffix) that is neither.
    """
    path = Path(given)
    if path.is_file() or "/" in given or path.suffix:
        return path
    shipped = shipped_configs("recipes", "tokenizer")
    if given in shipped:
        return shipped[given]
    if path.is_dir():
        raise ValueError(f"{given} is a folder: name a YAML file in it, or a shipped configuration")
    near = nearest(given, shipped)
    hint = f"the nearest is {near}" if near is not None else "`llmtrain configs` lists them"
    raise ValueError(f"{given} is neither a file nor a shipped configuration: {hint}")
