"""Imported once by the process that `tiny_run.start` forks from: all that the recipe imports."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "recipes" / "pretrain.py"), run_name="imported")
