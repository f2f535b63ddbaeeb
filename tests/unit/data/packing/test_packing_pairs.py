"""Preference pairs in a store and in packs: pairs stay whole, and every pair and token is accounted for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_chat import write_model
from tiny_pairs import pairs
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.batch import IGNORE_INDEX, empty_pairs, segment_ends
from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.data.chat.encode import ChatEncoder, Encoded
from llmtrain.data.formats.preferences import EQUAL
from llmtrain.data.packing.pairs import LEAST_SHARED, PairPack, collate_pairs, has_margins, pack_pairs, shared_lengths
from llmtrain.data.store.build import Stores
from llmtrain.data.store.fitting import cut_prompts
from llmtrain.data.store.kinds import NO_PROMPT_LEFT, TOO_LONG, build_pair_stores

ROWS = [
    {"prompt": "one", "chosen": "yes", "rejected": "no no", "margin": 0.5},
    {"prompt": "two", "chosen": "certainly", "rejected": "n"},
]
RANKED = [{"prompt": "three", "responses": ["a", "bb", "ccc"], "ranks": [1, 2, 3]}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))


def built(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    rows: list[dict[str, Any]],
    said: Any = None,
    *,
    plain: bool = False,
    **settings: Any,
) -> Stores:
    source, content = folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    if not source.exists() or source.read_text() != content:  # its modification time represents its content
        source.write_text(content)
    given = {"train": str(source), "eval_fraction": 0.0, "cache_dir": str(folder / "cache")} | settings
    encoder = ChatEncoder(tokenizer, plain=plain, loss_on="completion")
    report = (lambda line: None) if said is None else said.append
    return build_pair_stores(PreferenceDataConfig.model_validate(given), encoder, report=report)


def texts(tokenizer: PreTrainedTokenizerFast, ids: Any, lengths: Any) -> list[str]:
    bounds = np.cumsum([0, *lengths])
    return [tokenizer.decode(ids[start:end]) for start, end in pairwise(bounds)]


def chat(question: str, answer: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"


def test_a_store_alternates_chosen_and_rejected_up_to_the_end_of_the_turn(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (store,) = built(tokenizer, tmp_path, ROWS).train
    found = texts(tokenizer, store.tokens, np.diff(store.document_offsets))
    assert found == [chat("one", "yes"), chat("one", "no no"), chat("two", "certainly"), chat("two", "n")]


def test_margins_and_weights_are_stored_with_the_documents(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (one,) = built(tokenizer, tmp_path, ROWS).train
    assert one.values["margin"].tolist()[:2] == [0.5, 0.5] and math.isnan(one.values["margin"][2])
    assert one.values["weight"].tolist() == [1.0] * 4
    (ranked,) = built(tokenizer, tmp_path, RANKED).train
    assert ranked.values["weight"].tolist() == pytest.approx([1 / 3] * 6)


def test_a_store_has_margins_where_every_row_has_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (some,) = built(tokenizer, tmp_path, ROWS).train
    (every,) = built(tokenizer, tmp_path, ROWS[:1]).train
    assert not has_margins(some) and has_margins(every)


def test_no_pair_is_split_lost_or_repeated_by_packing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = list(pairs(seed=3, num_pairs=60))
    (store,) = built(tokenizer, tmp_path, rows).train
    packing = pack_pairs(store, 256)
    found = []
    for index in range(packing.num_packs):
        pack = packing.pack(index)
        assert len(pack.input_ids) <= 256
        sides = texts(tokenizer, pack.input_ids, pack.segment_lengths)
        found += list(zip(sides[::2], sides[1::2], strict=True))
    expected = [tuple(chat(row["prompt"], row[side]) for side in ("chosen", "rejected")) for row in rows]
    assert sorted(found) == sorted(expected)
    assert packing.num_packs < len(rows)


def test_the_labels_are_those_of_the_answers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (store,) = built(tokenizer, tmp_path, ROWS[:1]).train
    pack = pack_pairs(store, 1024).pack(0)
    bounds = np.cumsum([0, *pack.segment_lengths])
    for (start, end), answer in zip(pairwise(bounds), ("yes", "no no"), strict=True):
        labels = pack.labels[start:end]
        assert tokenizer.decode(labels[labels != IGNORE_INDEX]) == f"{answer}<|im_end|>"
        assert labels[-1] == IGNORE_INDEX
        assert labels[-2] == pack.input_ids[end - 1]


def laid(pack: PairPack) -> list[tuple[list[int], list[int], list[int]]]:
    """Prefix, chosen and rejected of each pair, as tokens."""
    lengths = zip(pack.prefix_lengths, pack.segment_lengths[::2], pack.segment_lengths[1::2], strict=True)
    bounds = np.cumsum([0, *(length for pair in lengths for length in pair)])
    parts = [pack.input_ids[start:end].tolist() for start, end in pairwise(bounds)]
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def test_a_shared_prompt_is_stored_once_and_each_answer_with_the_token_that_predicts_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (store,) = built(tokenizer, tmp_path, ROWS[:1]).train
    pack = pack_pairs(store, 1024, share_prompts=True).pack(0)
    ((prefix, chosen, rejected),) = laid(pack)
    assert tokenizer.decode(prefix) == "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant"
    assert [tokenizer.decode(side) for side in (chosen, rejected)] == ["\nyes<|im_end|>", "\nno no<|im_end|>"]
    ignored = [IGNORE_INDEX]
    assert pack.labels.tolist() == ignored * len(prefix) + chosen[1:] + ignored + rejected[1:] + ignored
    assert pack.answer_lengths == (len(chosen) - 1, len(rejected) - 1)


def test_documents_and_labels_are_the_same_with_shared_prompts(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = list(pairs(seed=3, num_pairs=60))
    (store,) = built(tokenizer, tmp_path, rows).train
    found: dict[bool, list[Any]] = {}
    for share in (False, True):
        packing = pack_pairs(store, 256, share_prompts=share)
        packs = [packing.pack(index) for index in range(packing.num_packs)]
        assert all(len(pack.input_ids) <= 256 for pack in packs)
        assert sum(len(pack.input_ids) for pack in packs) == packing.num_tokens == packing.num_targets
        found[share] = []
        for pack in packs:
            sides = [prefix + side for prefix, *both in laid(pack) for side in both]
            answers = iter(pack.labels[pack.labels != IGNORE_INDEX].tolist())
            labels = [list(islice(answers, length)) for length in pack.answer_lengths]
            found[share] += zip(sides[::2], labels[::2], sides[1::2], labels[1::2], strict=True)
        found[share].append(packing.num_packs)
    assert sorted(found[True][:-1]) == sorted(found[False][:-1])
    assert found[True][-1] < found[False][-1]


@dataclass(frozen=True)
class Store:
    """Documents of which all but the first `num_prompt` tokens are answers."""

    documents: tuple[tuple[int, ...], ...]
    num_prompt: int

    @property
    def num_documents(self) -> int:
        return len(self.documents)

    @property
    def tokens(self) -> Any:
        return np.concatenate(self.documents)

    @property
    def document_offsets(self) -> Any:
        return np.cumsum([0, *map(len, self.documents)])

    @property
    def trained(self) -> Any:
        return np.concatenate([np.arange(len(document)) >= self.num_prompt for document in self.documents])


@pytest.mark.parametrize(
    ("chosen", "rejected", "num_prompt", "shared"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 5), 3, 2),
        ((1, 2, 3, 4), (1, 2, 3, 4, 5), 3, 2),  # one answer begins the other
        ((1, 2, 3, 4), (1, 2, 3, 4, 5), 9, 3),  # no label, but a document never ends within its prefix
        ((1, 2, 3, 4), (1, 9, 3, 5), 3, 0),
        ((1, 2), (3, 4), 1, 0),
    ],
)
def test_what_is_shared_ends_before_the_token_that_predicts_an_answer(
    chosen: tuple[int, ...], rejected: tuple[int, ...], num_prompt: int, shared: int
) -> None:
    store: Any = Store((chosen, rejected) * 2, num_prompt)
    assert shared_lengths(store).tolist() == [shared] * 2


def test_a_prompt_of_a_few_tokens_is_not_shared(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": "p" * (LEAST_SHARED + more), "chosen": "yes", "rejected": "no"} for more in (0, 1)]
    (store,) = built(tokenizer, tmp_path, rows, chat_template="none", plain=True).train
    assert sorted(pack_pairs(store, 1024, share_prompts=True).pack(0).prefix_lengths) == [0, LEAST_SHARED]


def test_collate_joins_packs_end_to_end(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    packs = [pack_pairs(built(tokenizer, tmp_path, rows).train[0], 1024).pack(0) for rows in (ROWS, RANKED)]
    batch = collate_pairs(list(zip((7, 9), packs, strict=True)))
    assert batch.num_pairs == 5 == len(batch.weights)
    assert len(batch.segment_lengths) == 10 and sum(batch.segment_lengths) == batch.num_tokens
    assert batch.input_ids.tolist() == [*packs[0].input_ids.tolist(), *packs[1].input_ids.tolist()]
    assert batch.position_ids.tolist() == [i for length in batch.segment_lengths for i in range(length)]
    assert batch.sample_ids == (7, 9)
    assert batch.weights.tolist() == pytest.approx([1] * 2 + [1 / 3] * 3)
    assert batch.margins is not None and batch.margins.isnan().sum() == 4


def test_positions_go_on_after_a_shared_prompt(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (store,) = built(tokenizer, tmp_path, ROWS).train
    batch = collate_pairs([(0, pack_pairs(store, 1024, share_prompts=True).pack(0))])
    lengths = zip(batch.prefix_lengths, batch.segment_lengths[::2], batch.segment_lengths[1::2], strict=True)
    expected = []
    for prefix, chosen, rejected in lengths:
        assert prefix > 0
        expected += [*range(prefix + chosen), *range(prefix, prefix + rejected)]
    assert batch.position_ids.tolist() == expected
    ends = segment_ends(batch)
    assert batch.input_ids[ends].tolist() == [tokenizer.convert_tokens_to_ids("<|im_end|>")] * 4
    assert sorted(batch.position_ids[ends] + 1) == sorted(np.diff(store.document_offsets))


def test_rows_without_margins_give_a_batch_without(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (store,) = built(tokenizer, tmp_path, RANKED).train
    assert collate_pairs([(0, pack_pairs(store, 1024).pack(0))]).margins is None


def test_no_packs_make_an_empty_batch_of_no_weight() -> None:
    batch = collate_pairs([])
    assert (batch.num_pairs, batch.num_tokens, float(batch.weights.sum()), batch.sample_ids) == (0, 0, 0.0, ())
    assert torch.equal(batch.input_ids, empty_pairs().input_ids)


def pair(prompt_tokens: int, chosen_tokens: int, rejected_tokens: int) -> list[Encoded]:
    sides = []
    for number, answer_tokens in enumerate((chosen_tokens, rejected_tokens)):
        ids = np.concatenate([np.arange(prompt_tokens), 100 * (number + 1) + np.arange(answer_tokens)])
        sides.append(Encoded(ids.astype(np.uint16), ids >= 100))
    return sides


def test_a_pair_that_fits_stays_as_it_is() -> None:
    whole = pair(5, 3, 2)
    assert cut_prompts(whole, 15) is whole


@pytest.mark.parametrize(("max_seq_len", "kept"), [(14, [0, 2, 3, 4]), (13, [0, 2, 3, 4]), (12, [0, 3, 4])])
def test_a_long_pair_loses_the_beginning_of_both_prompts(max_seq_len: int, kept: list[int]) -> None:
    fitted = cut_prompts(pair(5, 3, 2), max_seq_len)
    assert fitted is not None
    chosen, rejected = fitted
    assert chosen.input_ids.tolist() == [*kept, 100, 101, 102]
    assert rejected.input_ids.tolist() == [*kept, 200, 201]
    assert chosen.trained.tolist() == [False] * len(kept) + [True] * 3


def test_a_pair_whose_answers_alone_are_too_long_does_not_fit() -> None:
    assert cut_prompts(pair(5, 3, 2), 8) is None


LONG = {"prompt": "w " * 60, "chosen": "yes", "rejected": "no"}
ENDLESS = {"prompt": "q", "chosen": "y" * 100, "rejected": "n" * 100}


@pytest.mark.parametrize(
    ("on_long_row", "kept", "dropped"),
    [("drop", 1, {TOO_LONG: 2}), ("truncate", 2, {NO_PROMPT_LEFT: 1})],
)
def test_long_pairs_are_dropped_or_cut_as_configured_and_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, on_long_row: str, kept: int, dropped: dict[str, int]
) -> None:
    stores = built(tokenizer, tmp_path, [ROWS[0], LONG, ENDLESS], max_seq_len=192, on_long_row=on_long_row)
    (ledger,), packing = stores.ledger.train, pack_pairs(stores.train[0], 192)
    assert {reason: tally.documents for reason, tally in ledger.dropped.items()} == dropped
    assert (ledger.kept["train"].documents, ledger.read.documents) == (kept, 3)
    assert ledger.tokens["train"].rows_cut == (on_long_row == "truncate")
    assert packing.num_tokens == ledger.tokens["train"].tokens
    assert all(len(packing.pack(index).input_ids) <= 192 for index in range(packing.num_packs))


def test_answers_that_are_equal_as_tokens_are_dropped(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    same = {"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "name": "x"}], "rejected": "a"}
    rows = [{**ROWS[0], "chosen": [{"role": "assistant", "content": "yes"}]}, same]
    stores = built(tokenizer, tmp_path, rows)
    assert stores.ledger.train[0].dropped[EQUAL].documents == 1


def test_no_question_is_in_both_splits(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 40}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(160)]
    stores = built(tokenizer, tmp_path, rows, eval_fraction=0.3)
    sides = []
    for store in (*stores.train, *stores.eval):
        found = texts(tokenizer, store.tokens, np.diff(store.document_offsets))
        sides.append({text.split("<|im_end|>")[0] for text in found})
    train, held_out = sides
    assert train and held_out and not train & held_out
    assert len(train | held_out) == 40


def test_a_finished_store_is_found_again(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first = built(tokenizer, tmp_path, ROWS)
    lines: list[str] = []
    assert built(tokenizer, tmp_path, ROWS, lines).names == first.names
    assert len(lines) == 1 and "2 train pairs" in lines[0]  # the account, and no word of tokenizing
    assert built(tokenizer, tmp_path, ROWS, lines, max_seq_len=512).names != first.names


def test_a_source_of_which_nothing_is_left_is_an_error(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pair is left to train on"):
        built(tokenizer, tmp_path, [LONG], max_seq_len=64)
