"""What a run does with its stores: steps, epochs, held-out packs, the account of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmtrain.batch import IGNORE_INDEX
from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.loader.batches import SingleProcess, collate
from llmtrain.data.loader.plan import DataPlan, plan_data
from llmtrain.data.packing.documents import StreamPacking, pack_documents
from llmtrain.data.store.token_store import TokenStore


def store_of(lengths: list[int]) -> TokenStore:
    """Documents of so many tokens, three bytes each."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(offsets[-1], dtype=np.uint16)
    return TokenStore(Path("store"), "train", tokens, offsets, np.array(lengths, dtype=np.int64) * 3, sum(lengths) * 3)


def plan(train: list[TokenStore], held_out: list[TokenStore], **changes: object) -> DataPlan:
    settings = {"epochs": 1.0, "global_batch_tokens": 32, "microbatch_tokens": 16} | changes
    tokens = settings.pop("eval_tokens", None)
    config = {
        "run": {"dir": "run", "seed": 1},
        "model": {"preset": "1m"},
        "tokenizer": {"path": "tokenizer"},
        "data": {"train": ["a"] * len(train), "max_seq_len": 8},
        "train": settings,
        "eval": {"tokens": tokens},
    }
    return plan_data(
        PretrainConfig.model_validate(config),
        [StreamPacking(store, 8, isolate_documents=True) for store in train],
        [StreamPacking(store, 8, isolate_documents=True) for store in held_out],
        SingleProcess(),
        eval_bytes=sum(store.num_bytes for store in held_out),
    )


def steps_of(made: DataPlan, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """The samples of each step of a whole run, of one rank."""
    source, steps = made.batches(collate, SingleProcess(rank, world_size)), []
    while (step := source.next_step()) is not None:
        source.advance()
        steps.append([sample for batch in step for sample in batch.sample_ids])
    return steps


@pytest.mark.parametrize(
    ("epochs", "sizes"),
    [
        (1.0, [4, 4, 4, 4]),
        (0.25, [4]),
        (2.0, [4] * 8),
        (1.01, [4, 4, 4, 4]),  # to the nearest pack
        (1.1, [4, 4, 4, 4, 2]),
        (0.01, [1]),
        (1.5, [4] * 6),
    ],
)
def test_a_run_takes_the_packs_of_its_epochs(epochs: float, sizes: list[int]) -> None:
    made = plan([store_of([60, 68])], [], epochs=epochs)  # 16 packs, 4 a step
    assert [len(step) for step in steps_of(made)] == sizes
    assert made.num_steps == len(sizes)


@pytest.mark.parametrize("global_batch_tokens", [8, 32, 96, 8 * 64])
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_epoch_takes_each_pack_once(global_batch_tokens: int, epochs: int) -> None:
    made = plan([store_of([60, 4, 36]), store_of([2, 27])], [], epochs=epochs, global_batch_tokens=global_batch_tokens)
    places = [made.order(sample) for step in steps_of(made) for sample in step]
    everything = [(source, pack) for source, packing in enumerate(made.train) for pack in range(packing.num_packs)]
    assert sorted(places) == sorted(everything * epochs)
    trained = sum(int((made.train_pack(i).labels != IGNORE_INDEX).sum()) for i in range(len(places)))
    assert trained == epochs * (129 - 5)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_a_short_last_step(world_size: int) -> None:
    made = plan([store_of([60, 12])], [], epochs=1)  # 9 packs, 4 a step: the last step has 1
    shares = [steps_of(made, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {3}
    assert sorted(sample for share in shares for step in share for sample in step) == list(range(9))
    assert [len(share[-1]) for share in shares] == [1] + [0] * (world_size - 1)


def test_a_run_of_one_epoch_goes_on_where_its_short_last_step_ended() -> None:
    stores = [store_of([60, 12])]
    first, longer = (plan(stores, [], epochs=epochs) for epochs in (1, 2))
    source = first.batches(collate, SingleProcess())
    while source.next_step() is not None:
        source.advance()
    resumed = longer.batches(collate, SingleProcess())
    resumed.load_state_dict(source.state_dict())
    seen = []
    while (step := resumed.next_step()) is not None:
        resumed.advance()
        seen += [sample for batch in step for sample in batch.sample_ids]
    assert sorted(seen) == list(range(9, 18))


@pytest.mark.parametrize(
    ("length", "taken"), [({"epochs": 1}, [0, 1, 2, 3, 8]), ({"steps": 3}, [*range(4), *range(8, 16)])]
)
def test_an_epoch_does_not_replace_what_a_roll_back_skips(length: dict[str, int], taken: list[int]) -> None:
    """The second step of 4 packs is skipped: an epoch of 9 packs ends at its end, a run of 3 steps still has 3."""
    source = plan([store_of([60, 12])], [], **{"epochs": None} | length).batches(collate, SingleProcess())
    start = source.state_dict()
    source.next_step()
    source.advance()
    source.load_state_dict(source.state_without_step(start))
    seen = []
    while (step := source.next_step()) is not None:
        source.advance()
        seen += [sample for batch in step for sample in batch.sample_ids]
    assert seen == taken


def test_the_ledger_and_the_rows_have_the_true_epochs() -> None:
    made = plan([store_of([40])], [], global_batch_tokens=8 * 64)
    source = made.batches(collate, SingleProcess())
    assert source.next_step() is not None
    source.advance()
    assert source.epoch == 1.0
    account = made.account(1, 39, source)
    assert (account["epochs"], account["packs"], account["tokens_per_epoch"]) == (1.0, 5, 39)
    lines = list(made.report())
    assert lines[0] == "training: 1 epoch of 5 packs, in 1 step of 64 packs, the last of 5"
    assert "train.epochs=1.0 is 5 packs, less than one step: lower train.global_batch_tokens=512" in lines[1]


def test_a_run_of_few_steps_that_follow_from_the_data_says_so() -> None:
    lines = list(plan([store_of([8] * 64)], [], global_batch_tokens=8 * 32).report())
    assert lines[0] == "training: 1 epoch of 64 packs, in 2 steps of 32 packs"
    assert lines[1].startswith("warning: 2 steps teach a model little: lower train.global_batch_tokens=256, or raise")
    assert len(list(plan([store_of([8] * 64)], [], global_batch_tokens=8).report())) == 1


SOURCES = {
    "one token per document": [2] * 3,
    "less than a pack": [5],
    "a short last pack": [6, 3],
    "a few packs": [8, 8, 7, 7, 3],
    "many": [8, 5, 3, 7] * 400,
}


@pytest.mark.parametrize("packing", ["stream", "one sequence", "best fit"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.03, 0.97), (5.0, 1.0)])
@pytest.mark.parametrize("small", SOURCES)
def test_weights_are_shares_of_the_tokens(packing: str, weights: tuple[float, float], small: str) -> None:
    made = weighted(packing, weights, [SOURCES[small], [8, 8, 4] * 500])
    tokens, of_steps, lengths = np.zeros(2), [], {}
    for step in range(made.num_steps):
        places = [made.order(sample) for sample in range(16 * step, 16 * step + 16)]
        for place in places:
            if place not in lengths:
                lengths[place] = len(made.train[place[0]].pack(place[1]).input_ids)
            tokens[place[0]] += lengths[place]
        of_steps.append(sum(lengths[place] for place in places))
    assert tokens[0] / tokens.sum() == pytest.approx(weights[0] / sum(weights), abs=0.01)
    assert min(of_steps) > 0.6 * 16 * 8  # whole documents of 5 fill packs of 8 to 5 / 8
    if packing != "best fit":
        assert min(of_steps) > 0.95 * 16 * 8


def weighted(packing: str, weights: Sequence[float], lengths: Sequence[list[int]], steps: int = 256) -> DataPlan:
    config = {
        "run": {"dir": "run", "seed": 1},
        "model": {"preset": "1m"},
        "tokenizer": {"path": "tokenizer"},
        "data": {"train": [{"path": f"s{i}", "weight": weight} for i, weight in enumerate(weights)], "max_seq_len": 8},
        "train": {"steps": steps, "global_batch_tokens": 16 * 8, "microbatch_tokens": 16},
    }
    stores = [store_of(each) for each in lengths]
    packs = [
        pack_documents(store, 8) if packing == "best fit" else StreamPacking(store, 8, packing == "stream")
        for store in stores
    ]
    return plan_data(PretrainConfig.model_validate(config), packs, [], SingleProcess())


def test_how_often_a_weighted_source_is_read_is_in_the_log_and_the_ledger() -> None:
    made = weighted("stream", [1, 3], [[5], [8, 8, 4] * 500], steps=100)  # 12,800 tokens
    source = made.batches(collate, SingleProcess())
    for _ in range(100):
        source.advance()
    small, large = made.account(100, 0, source)["sources"]
    assert small["tokens"] + large["tokens"] == pytest.approx(12_800, rel=0.01)
    assert small["times_read"] == pytest.approx(3200 / 5, rel=0.02)
    assert large["times_read"] == pytest.approx(9600 / 10_000, rel=0.02)
    assert source.metrics() == {}
    first, second, _ = made.report()
    assert first == "training: 100 steps of 16 packs; each source by its weight:"
    assert second.startswith("data.train[0] (s0): 25.") and "% of the tokens, read 6" in second


def test_a_weight_that_gives_a_source_no_pack_is_named() -> None:
    *_, line = weighted("stream", [1, 1e-6], [[30], [30]], steps=10).report()
    assert "data.train[1] (s1): 0.000% of the tokens" in line
    assert "warning: weight=1e-06 gives it none of the run's packs" in line


def test_a_source_without_a_token_to_predict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.train\[1\]=a: no tokens to train on: every document is one token"):
        plan([store_of([8]), store_of([1] * 9)], [])


@pytest.mark.parametrize("held_out", [[[1] * 9], [[1], [1]], [[1]]])
@pytest.mark.parametrize("eval_tokens", [None, 3])
def test_held_out_documents_without_a_token_to_predict_are_refused(
    held_out: list[list[int]], eval_tokens: int | None
) -> None:
    with pytest.raises(ValueError, match=r"no held-out tokens to evaluate on: every document is one token"):
        plan([store_of([64])], [store_of(lengths) for lengths in held_out], eval_tokens=eval_tokens)


def test_a_held_out_token_to_predict_is_enough() -> None:
    made = plan([store_of([64])], [store_of([1] * 20 + [2]), store_of([])])
    assert made.num_eval_packs == 1  # of three stretches of 8 tokens two have nothing to predict
    assert (made.eval_pack(0).labels != IGNORE_INDEX).sum() == 1


def test_fewer_tokens_to_evaluate_than_a_pack_are_one_pack() -> None:
    assert plan([store_of([64])], [store_of([40])], eval_tokens=3).num_eval_packs == 1


def test_held_out_packs_are_all_or_a_fixed_spread() -> None:
    held_out = [store_of([40]), store_of([24, 16])]
    everything = plan([store_of([64])], held_out)
    assert everything.num_eval_packs == 10
    rows = [tuple(everything.eval_pack(i).input_ids) for i in range(10)]
    assert len(rows) == 10 and all(rows)
    some = plan([store_of([64])], held_out, eval_tokens=30)
    assert some.num_eval_packs == 4
    assert {tuple(some.eval_pack(i).input_ids) for i in range(4)} <= set(rows)


def test_bytes_per_token_come_from_the_held_out_documents() -> None:
    assert plan([store_of([64])], [store_of([40])]).eval_bytes_per_token == pytest.approx(3.0)
