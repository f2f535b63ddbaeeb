"""Copies the shipped configurations into the wheel; everything else is in pyproject.toml.

They stay where a reader of the repository looks for them (`recipes/`, `tokenizer/`), outside the package.
`llmtrain/config/shipped.py` finds them in both places.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = {"recipes": "recipes/configs", "accelerate": "recipes/accelerate", "tokenizer": "tokenizer"}


class BuildWithConfigs(build_py):
    """`build_py`, and the YAML files; an editable install reads those of the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for kind, folder in FOLDERS.items():
            target = Path(self.build_lib, "llmtrain", "configs", kind)
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted(Path(folder).glob("*.yaml")):
                shutil.copyfile(path, target / path.name)


setup(cmdclass={"build_py": BuildWithConfigs})
