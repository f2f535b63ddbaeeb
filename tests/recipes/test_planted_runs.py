"""Small real trainings with a planted fault get the verdict that names it.

python -m pytest tests/recipes/test_planted_runs.py -m soak -s      # the table of predicted against planted

A run that is not what was meant to be planted, by the definitions of `planting.py`, says nothing about the verdict: the
quick tests fail with "plant failed", and the table counts it in a column of its own.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from planted_runs import MODELS, PLANTS, plant
from planting import curves_of, missing

from llmtrain.runs.record import read_run
from llmtrain.runs.report.verdict import verdict_of

pytestmark = pytest.mark.timeout(600)  # several real runs each, also on a slow machine

QUICK_SEED = 1
SEEDS = [int(seed) for seed in os.environ.get("PLANTED_SEEDS", "31,32,33").split(",")]
ALL_MODELS = [*MODELS, "chat"]
SOAK_MODELS = os.environ.get("PLANTED_MODELS", ",".join(ALL_MODELS)).split(",")
LEAST_RIGHT = 0.9  # of the good plants: words border on each other
PLANT_FAILED = "plant failed"


@pytest.mark.parametrize("word", PLANTS)
def test_a_planted_run_gets_its_word(word: str, tmp_path: Path) -> None:
    planted = plant(tmp_path, word, seed=QUICK_SEED)
    assert not (lacks := missing(word, curves_of(planted.run, planted.least_loss))), f"{PLANT_FAILED}: not {lacks}"
    verdict = verdict_of(read_run(planted.run))
    assert verdict.word == word, verdict.evidence
    assert (verdict.stop_step is None) == (word != "overfitting")


def planted_words(folder: Path) -> Iterator[tuple[str, str]]:
    """(planted, predicted) of each run of the battery, shown as they come; predicted may be PLANT_FAILED.

    Each model and seed has one run of each word; the kinds of a word take turns.
    """
    for seed, model in product(SEEDS, SOAK_MODELS):
        for word, kinds in PLANTS.items():
            kind = (seed + ALL_MODELS.index(model)) % len(kinds)
            planted = plant(folder / f"{model}-{seed}-{word}", word, seed=seed, model=model, kind=kind)
            lacks = missing(word, curves_of(planted.run, planted.least_loss))
            verdict = verdict_of(read_run(planted.run))
            failed = f" {PLANT_FAILED}: not {lacks}" if lacks else ""
            also = [finding.word for finding in verdict.findings]
            print(f"{model} seed {seed} planted {word} ({kind}){failed}: {verdict.word} {also} {verdict.evidence[0]}")
            sys.stdout.flush()
            yield word, PLANT_FAILED if lacks else verdict.word


@pytest.mark.soak
@pytest.mark.timeout(14400)
def test_verdicts_hold_on_seeds_and_models_that_set_no_threshold(tmp_path: Path) -> None:
    counts = Counter(planted_words(tmp_path))
    words = list(PLANTS)
    columns = [*words, PLANT_FAILED]
    print(f"\n{'planted / predicted':20s}" + "".join(f"{word[:14]:>16s}" for word in columns))
    for planted in words:
        print(f"{planted:20s}" + "".join(f"{counts[planted, predicted]:16d}" for predicted in columns))
    num_failed = sum(count for (_, predicted), count in counts.items() if predicted == PLANT_FAILED)
    num_good = counts.total() - num_failed
    right = sum(count for (planted, predicted), count in counts.items() if planted == predicted)
    print(f"{right} of {num_good} right; {num_failed} plants failed")
    assert right >= LEAST_RIGHT * num_good
    assert num_good >= LEAST_RIGHT * counts.total()
