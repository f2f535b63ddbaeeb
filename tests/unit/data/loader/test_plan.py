"""What a run does with its stores: steps, epochs, held-out packs, the account of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmtrain.batch import IGNORE_INDEX
from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.loader.batches import SingleProcess, collate
from llmtrain.data.loader.plan import DataPlan, plan_data
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.token_store import TokenStore


def store_of(lengths: list[int]) -> TokenStore:
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


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 4), (0.25, 1), (2.0, 8), (1.01, 5)])
def test_epochs_become_steps_rounded_up(epochs: float, steps: int) -> None:
    assert plan([store_of([60, 68])], [], epochs=epochs).num_steps == steps  # 16 packs, 4 a step


def test_an_epoch_trains_on_every_token_its_account_promises() -> None:
    made = plan([store_of([60, 4, 36]), store_of([1, 27])], [])
    assert made.order.epoch_size % made.packs_per_step == 1  # 13 packs and 4: the last step begins a new epoch
    source, trained = made.batches(collate, SingleProcess()), 0
    seen: list[int] = []
    while (step := source.next_step()) is not None:
        source.advance()
        for batch in step:
            for sample in batch.sample_ids:
                if sample < made.order.epoch_size:
                    pack = made.train_pack(sample)
                    trained += int((pack.labels != IGNORE_INDEX).sum())
                    seen.append(sample)
    assert sorted(seen) == list(range(made.order.epoch_size))
    assert trained == made.account(0, 0, 0)["tokens_per_epoch"] == 128 - 5


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
