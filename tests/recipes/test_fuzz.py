"""No input that is wrong gives a traceback: generated configurations, rows, files and folders, over all commands.

A seed that fails is replayed alone by `python tests/fuzz_cases.py SEED`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fuzz_cases import DATA_OF
from fuzz_configs import config_tree, variants
from fuzz_rows import ROWS, write_rows
from fuzz_world import World, run
from recipe_schemas import SCHEMAS
from tiny_run import ROOT, environment

CHUNK = 250
"""Cases of one process: they share its imports and its models."""


def faults(first: int, end: int) -> list[str]:
    """What goes wrong for seeds `first` to `end`."""
    command = [sys.executable, "-X", "faulthandler", str(Path("tests", "fuzz_cases.py")), str(first), str(end)]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, errors="replace", check=False
    )
    found = [line for line in ended.stdout.splitlines() if line.startswith("FAULT")]
    if ended.returncode or not ended.stdout.rstrip().splitlines()[-1].startswith("seeds"):
        found.append(f"seeds {first} to {end}: the process ended with {ended.returncode}\n{ended.stderr[-3000:]}")
    return found


@pytest.mark.slow
def test_what_the_fuzz_changes_is_right_before(tmp_path: Path) -> None:
    """A case whose inputs were wrong from the start would try nothing but its first refusal."""
    world = World(tmp_path)
    tried = [
        (recipe, variant, rows)
        for recipe in SCHEMAS
        for number, variant in enumerate(variants(recipe))
        for rows in ROWS[DATA_OF.get(recipe, recipe)][: None if number == 0 else 1]
    ]
    wrong = {}
    for number, (recipe, variant, rows) in enumerate(tried):
        folder = tmp_path / str(number)
        folder.mkdir()
        tree = config_tree(recipe, world, folder, write_rows(folder / "rows.jsonl", rows * 4), variant)
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        verb = recipe if recipe in ("pretrain", "sft") else "rlhf"
        ended = run([verb, str(folder / "config.yaml")], folder=folder)
        if ended.code != 0:
            wrong[f"{recipe} {variant} {rows}"] = ended.err or ended.code
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_500_wrong_inputs_end_in_one_line() -> None:
    assert faults(0, 500) == []


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_10_000_wrong_inputs_end_in_one_line() -> None:
    first = random.SystemRandom().randrange(10**6, 10**9)
    print(f"seeds from {first}")
    assert [fault for start in range(first, first + 10_000, CHUNK) for fault in faults(start, start + CHUNK)] == []
