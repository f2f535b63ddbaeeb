"""Families whose parts ranks use unequally train under two processes as under one, or are refused in a line.

The gradients of a step are compared by Adam's first moment; `eps` is large enough for weights to be comparable too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from families_worker import KINDS
from launch import launch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("families_worker.py")
CONFIGS = {"single": None, "ddp": "cpu", "zero2": "cpu_zero2", "zero3": "cpu_zero3", "fsdp2": "fsdp2"}
UNREACHED = ("indexer", "compressor", "chosen")
TRAINED = {
    "ddp": ("experts", *UNREACHED, "layers"),
    "zero2": ("experts", *UNREACHED),
    "zero3": ("experts", "rows", "mixers"),
    "fsdp2": ("experts", *UNREACHED, "rows", "mixers"),
}
"""Under each engine those families that another engine does not show as well."""
REFUSED = {"zero3": ("chosen",)}
QUICK = ("ddp", "zero3")
ENGINES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TRAINED]
CASES = [
    pytest.param(engine, kind, marks=() if engine in QUICK else pytest.mark.slow)
    for engine, kinds in TRAINED.items()
    for kind in kinds
]
TOLERANCE = 1e-6

pytestmark = pytest.mark.timeout(400)  # DeepSpeed may have to build an extension first

Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What the worker wrote under an engine, of all families; run once each."""
    folder = tmp_path_factory.mktemp("families")

    @cache
    def folder_of(engine: str) -> Path:
        kinds = [*TRAINED.get(engine, KINDS), *REFUSED.get(engine, ())]
        launch(WORKER, [str(folder / engine), *kinds], config=CONFIGS[engine], output=folder / f"process_{engine}")
        return folder / engine

    return folder_of


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("engine", "kind"), CASES)
def test_two_processes_train_a_family_as_one_does(trained: Trained, engine: str, kind: str) -> None:
    assert seen(trained(engine))["engine"] == engine
    one, two = (load_file(trained(which) / f"{kind}.safetensors") for which in ("single", engine))
    assert one.keys() == two.keys()
    gaps = {name: float((one[name] - two[name]).abs().max()) for name in one if not name.endswith("/step")}
    assert max(gaps.values()) < TOLERANCE, max(gaps, key=lambda name: gaps[name])
    logged = [seen(trained(which))[kind]["logged"] for which in ("single", engine)]
    for expected, found in zip(*logged, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert ("balance_loss" in logged[0][0]) == (kind == "experts")


@pytest.mark.parametrize("engine", list(REFUSED))
def test_a_family_that_ranks_would_call_unequally_often_is_refused_in_a_line(trained: Trained, engine: str) -> None:
    for kind in REFUSED[engine]:
        reason = seen(trained(engine))[kind]["refused"]
        assert "not every document uses model.layers.0.mlp.experts.0.weight" in reason and "\n" not in reason


def test_the_log_says_what_not_every_document_reaches(trained: Trained) -> None:
    lines = {kind: each["unreached"] for kind, each in seen(trained("ddp")).items() if kind in KINDS}
    assert {kind for kind, line in lines.items() if "reached by no document" in line} == {"indexer", "compressor"}
    assert {kind for kind, line in lines.items() if "not reached by every" in line} == {
        "compressor",
        "chosen",
        "layers",
    }
    assert lines["experts"] == ""


def test_what_no_document_reaches_stays_as_it_is(trained: Trained) -> None:
    state = load_file(trained("ddp") / "indexer.safetensors")
    moved = {name: float(each.abs().max()) for name, each in state.items() if name.endswith("/exp_avg_sq")}
    assert {name for name, of in moved.items() if not of} == {name for name in moved if ".indexer." in name} != set()
