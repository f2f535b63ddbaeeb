"""`data.order=given`: rows in the order of their files, in every epoch, on any number of ranks, also when resumed."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from tiny_chat import write_model
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.config.recipes import PretrainConfig, SftConfig
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.loader.batches import SingleProcess, collate
from llmtrain.data.loader.order import SampleOrder
from llmtrain.data.loader.plan import DataPlan, plan_data
from llmtrain.data.packing.best_fit import in_order
from llmtrain.data.packing.documents import pack_documents
from llmtrain.data.store.kinds import build_chat_stores


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([5, 4, 3, 9], [[0, 1], [2], [3]]),
        ([10, 10], [[0], [1]]),
        ([1] * 25, [list(range(10)), list(range(10, 20)), list(range(20, 25))]),
        ([], []),
    ],
)
def test_packs_in_order_open_the_next_where_an_item_does_not_fit(lengths: list[int], bins: list[list[int]]) -> None:
    found = in_order(np.array(lengths, dtype=np.int64), 10)
    assert [found[i] for i in range(len(found))] == bins


def test_positions_are_the_packs_of_the_sources_one_after_the_other() -> None:
    order = SampleOrder([2, 3], None, 7, as_given=True)
    once = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [order(position) for position in range(12)] == [*once, *once, *once[:2]]


class Made(NamedTuple):
    plan: DataPlan
    tokenizer: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Rows of many lengths in two files, each with its number as its answer."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = AutoTokenizer.from_pretrained(write_model(folder / "model"))
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="last")
    lengths = np.random.default_rng(0).integers(1, 40, 60).tolist()
    rows = [{"prompt": "x" * length, "completion": f"<{number}>"} for number, length in enumerate(lengths)]
    for name, part in (("b", rows[:40]), ("a", rows[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = SftConfig.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": {"path": str(folder / "model")},
            "data": {
                "train": [str(folder / "b.jsonl"), str(folder / "a.jsonl")],
                "eval_fraction": 0.0,
                "max_seq_len": 96,
                "order": "given",
                "cache_dir": str(folder / "cache"),
            },
            "train": {"epochs": 2, "global_batch_tokens": 96 * 6, "microbatch_tokens": 96},
        }
    )
    stores = build_chat_stores(config.data, encoder, report=lambda line: None)
    packs = [pack_documents(store, 96, lambda line: None, as_given=True) for store in stores.train]
    return Made(plan_data(config, packs, [], SingleProcess()), tokenizer)


def numbers(batch: Any, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The numbers of the rows of a microbatch of one pack."""
    text = tokenizer.decode(batch.labels[batch.labels >= 0], skip_special_tokens=True)
    return [int(part) for part in re.findall(r"<(\d+)>", text)]


def steps(made: Made, world_size: int, start: int = 0) -> list[list[int]]:
    """The numbers of the rows of each step, in order; with `start`, of a run that was stopped before that step."""
    sources = [made.plan.batches(collate, SingleProcess(rank, world_size)) for rank in range(world_size)]
    for _ in range(start):
        sources[0].advance()
    for source in sources[1:]:
        source.load_state_dict(sources[0].state_dict())
    found = []
    while (step := [source.next_step() for source in sources])[0] is not None:
        rows: dict[int, list[int]] = {}
        for batches in step:
            for batch in batches or ():
                rows |= {position: numbers(batch, made.tokenizer) for position in batch.sample_ids}
        found.append([number for position in sorted(rows) for number in rows[position]])
        for source in sources:
            source.advance()
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_come_as_their_files_have_them_in_every_epoch(made: Made, world_size: int) -> None:
    all_steps = steps(made, world_size)
    assert [number for step in all_steps for number in step] == [*range(60), *range(60)]
    assert all_steps == steps(made, 1)


@pytest.mark.parametrize("start", [1, 3])
def test_a_run_that_goes_on_goes_on_with_the_next_row(made: Made, start: int) -> None:
    left = steps(made, 2, start)
    assert left and left == steps(made, 1)[start:]


def test_weights_of_sources_contradict_the_given_order() -> None:
    tree = {
        "run": {"dir": "run"},
        "model": {"preset": "1m"},
        "tokenizer": {"path": "tokenizer"},
        "data": {"train": [{"path": "a", "weight": 1}, {"path": "b", "weight": 2}], "order": "given"},
        "train": {"steps": 1},
    }
    with pytest.raises(ValueError, match=r"data\.order=given takes one source after the other, which"):
        PretrainConfig.model_validate(tree)
