"""A step is the same however it is split: 1, 2 or 8 microbatches give equal weights after 20 steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_run import run_here, write_config, write_tokenizer
from torch import Tensor, nn

from llmtrain.batch import PackedTokens
from llmtrain.objectives.next_token import NextToken
from llmtrain.protocols import Counts, Metrics

MAX_SEQ_LEN = 32
PACKS_PER_STEP = 8
LONG = "the cat sat on the mat and the dog lay by the door"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of one byte, on which nothing can be trained, between long ones; no token is put around them.

    One of two bytes every so often, since a stretch of tokens without any to train on is no pack.
    """
    folder = tmp_path_factory.mktemp("unequal")
    tokenizer = write_tokenizer(folder / "tokenizer", special_tokens=())
    texts: list[str] = []
    for number in range(100):
        texts += [LONG[number % 20 :]] * 3 + [*(["abcde"[number % 5]] * 26), "xy"] * 5
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    return write_config(
        folder,
        tokenizer,
        [corpus],
        data={"max_seq_len": MAX_SEQ_LEN, "eval_fraction": 0},
        train={"steps": 20, "global_batch_tokens": PACKS_PER_STEP * MAX_SEQ_LEN},
        optim={"lr": 0.003},
        checkpoint={"every": None},
    )


def trained(config: Path, num_microbatches: int, name: str, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """The weights after a run that splits each step so; asserts that it did, 5:1 in trained tokens."""
    ratios: list[float] = []
    counts_of = NextToken.counts
    seen: list[int] = []

    def counts(objective: NextToken, batch: PackedTokens) -> Counts:
        seen.append(batch.num_trained)
        if len(seen) == num_microbatches:
            ratios.append(max(seen) / max(1, min(seen)))
            seen.clear()
        return counts_of(objective, batch)

    with monkeypatch.context() as patched:
        patched.setattr(NextToken, "counts", counts)
        tokens = MAX_SEQ_LEN * PACKS_PER_STEP // num_microbatches
        ended = run_here(config, f"train.microbatch_tokens={tokens}", f"run.dir={config.parent}/{name}")
    assert ended.code == 0, ended.err
    assert len(ratios) == 20
    if num_microbatches == PACKS_PER_STEP:
        assert min(ratios) >= 5
    return load_file(config.parent / name / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(config: Path) -> Weights:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return trained(config, 1, "whole", monkeypatch)


def difference(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


@pytest.mark.parametrize("num_microbatches", [2, 8])
def test_splitting_a_step_changes_no_weight(
    config: Path, whole: Weights, num_microbatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = trained(config, num_microbatches, f"split{num_microbatches}", monkeypatch)
    assert difference(whole, split) < 2e-5


def test_a_mean_of_means_is_told_apart(config: Path, whole: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_of_means(
        objective: NextToken, model: nn.Module, batch: PackedTokens, totals: Counts
    ) -> tuple[Tensor, Metrics]:
        share = model(batch, objective.options).objective / max(1, batch.num_trained) / 8
        return share, {"loss": share.detach()}

    monkeypatch.setattr(NextToken, "loss", mean_of_means)
    assert difference(whole, trained(config, 8, "means", monkeypatch)) > 2e-3
