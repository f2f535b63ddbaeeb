"""Packs: every token once, every prediction once, bounds where the documents' are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llmtrain.batch import IGNORE_INDEX
from llmtrain.data.loader.batches import PacksOfRun, SingleProcess, StoredBatches, collate, rank_batches
from llmtrain.data.loader.order import SampleOrder
from llmtrain.data.packing.documents import Pack, StreamPacking, pack_documents


@dataclass
class FakeStore:
    tokens: np.ndarray
    document_offsets: np.ndarray
    trained: np.ndarray | None = None
    path: Path = Path("no such folder")
    split: str = "train"
    weights: np.ndarray | None = None

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1


def store_of(lengths: list[int]) -> FakeStore:
    """Documents whose tokens number themselves: token = 100 * document + place."""
    tokens = np.concatenate([100 * i + np.arange(length) for i, length in enumerate(lengths)])
    return FakeStore(tokens.astype(np.uint16), np.concatenate([[0], np.cumsum(lengths)]))


def stream_pack(store: FakeStore, index: int, max_seq_len: int, isolate_documents: bool) -> Pack:
    return StreamPacking(store, max_seq_len, isolate_documents).pack(index)


@pytest.mark.parametrize(
    "lengths",
    [[5, 3, 9, 1, 14], [8, 8], [30], [4, 4, 4, 4], [1] * 20 + [3] + [1] * 9, [1] * 8 + [9] + [1] * 16],
)
@pytest.mark.parametrize("max_seq_len", [2, 4, 8, 64])
def test_every_token_but_the_first_of_each_document_is_predicted_once(lengths: list[int], max_seq_len: int) -> None:
    store = store_of(lengths)
    packing = StreamPacking(store, max_seq_len, True)
    packs = [packing.pack(i) for i in range(packing.num_packs)]
    inputs = np.concatenate([pack.input_ids for pack in packs])
    assert packing.num_tokens == len(inputs)
    assert all((pack.labels != IGNORE_INDEX).any() for pack in packs)
    assert set(inputs) <= set(store.tokens)
    left_out = set(store.tokens) - set(inputs)  # stretches of documents of one token
    assert len(inputs) + len(left_out) == len(store.tokens)
    assert not left_out & {token for token in store.tokens.tolist() if token + 1 in store.tokens}
    labels = np.concatenate([pack.labels for pack in packs])
    trained = labels[labels != IGNORE_INDEX]
    assert sorted(trained) == sorted(token for token in store.tokens.tolist() if token % 100 != 0)
    np.testing.assert_array_equal(inputs[labels != IGNORE_INDEX] + 1, trained)  # each label follows its own token


@pytest.mark.parametrize("max_seq_len", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("isolate", [True, False])
def test_packs_without_a_label_are_no_packs(max_seq_len: int, isolate: bool) -> None:
    """Against every stretch looked at, where stretches of one token per document start and end anywhere."""
    drawn = np.random.default_rng(max_seq_len)
    for _ in range(60):
        lengths: list[int] = []
        for _ in range(drawn.integers(1, 6)):
            lengths += [1] * drawn.integers(0, 4 * max_seq_len) + [int(drawn.integers(1, 3 * max_seq_len))]
        store = store_of(lengths)
        packing = StreamPacking(store, max_seq_len, isolate)
        size, ends = len(store.tokens), set(store.document_offsets[1:].tolist()) if isolate else {len(store.tokens)}
        stretches = [range(start, min(start + max_seq_len, size)) for start in range(0, size, max_seq_len)]
        labelled = [each for each in stretches if not {token + 1 for token in each} <= ends]
        found = [packing.pack(index).input_ids.tolist() for index in range(packing.num_packs)]
        assert found == [store.tokens[each.start : each.stop].tolist() for each in labelled]
        assert packing.num_tokens == sum(map(len, labelled))


def test_segments_end_where_documents_or_the_pack_end() -> None:
    store = store_of([5, 3, 9, 1, 14])
    assert [stream_pack(store, i, 8, True).segment_lengths for i in range(4)] == [(5, 3), (8,), (1, 1, 6), (8,)]


def test_without_isolation_a_pack_is_one_segment_and_crosses_documents() -> None:
    store = store_of([5, 3, 9])
    pack = stream_pack(store, 0, 8, False)
    assert pack.segment_lengths == (8,)
    assert pack.labels.tolist() == [1, 2, 3, 4, 100, 101, 102, 200]
    assert StreamPacking(store, 8, False).num_packs == 2  # the last token of all is alone, and predicts nothing
    assert stream_pack(store_of([5, 3, 10]), 2, 8, False).labels.tolist() == [209, IGNORE_INDEX]


def test_collate_restarts_positions_with_each_segment() -> None:
    store = store_of([5, 3, 9])
    batch = collate([(i, stream_pack(store, i, 8, True)) for i in range(2)])
    assert batch.position_ids.tolist() == [*range(5), *range(3), *range(8)]
    assert batch.segment_lengths == (5, 3, 8)
    assert batch.num_trained == 4 + 2 + 8
    assert batch.sample_ids == (0, 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("packs_per_microbatch", [1, 2, 5])
def test_ranks_share_a_step_and_stay_in_step(world_size: int, packs_per_microbatch: int) -> None:
    store = store_of([50])
    shares = [
        list(
            rank_batches(
                range(5), lambda i: stream_pack(store, i, 8, True), packs_per_microbatch, rank, world_size, collate
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(sample for share in shares for batch in share for sample in batch.sample_ids) == [0, 1, 2, 3, 4]


def batches_of(num_steps: int) -> StoredBatches:
    store = store_of([50, 60])
    order = SampleOrder([StreamPacking(store, 8, True).num_packs], None, seed=3)
    return StoredBatches(
        lambda sample_id: stream_pack(store, order(sample_id)[1], 8, True),
        collate,
        SingleProcess(),
        PacksOfRun(
            3 * num_steps,
            per_step=3,
            per_microbatch=2,
            epoch=lambda num_packs: num_packs / order.epoch_size,
            replaces_skipped=True,
        ),
    )


def samples(source: StoredBatches, steps: int) -> list[tuple[int, ...]]:
    taken = []
    for _ in range(steps):
        step = source.next_step()
        assert step is not None
        source.advance()
        taken.append(tuple(sample for batch in step for sample in batch.sample_ids))
    return taken


def test_a_source_goes_on_from_its_state() -> None:
    straight, first, second = batches_of(6), batches_of(6), batches_of(6)
    expected = samples(straight, 6)
    head = samples(first, 2)
    second.load_state_dict(first.state_dict())
    assert head + samples(second, 4) == expected
    assert second.next_step() is None


def test_a_step_comes_again_until_the_source_advances() -> None:
    source = batches_of(2)
    first, again = source.next_step(), source.next_step()
    assert first and again and [batch.sample_ids for batch in first] == [batch.sample_ids for batch in again]
    assert source.state_dict()["taken"] == 0
    source.advance()
    assert samples(source, 1) == [(3, 4, 5)]
    assert source.next_step() is None and source.next_step() is None


def test_a_rolled_back_source_leaves_out_the_present_step_and_all_skipped_before() -> None:
    source = batches_of(10)
    start = source.state_dict()
    samples(source, 1)
    source.load_state_dict(source.state_without_step(start))
    assert samples(source, 2) == [(0, 1, 2), (6, 7, 8)]
    source.load_state_dict(source.state_without_step(start))
    assert samples(source, 3) == [(0, 1, 2), (6, 7, 8), (12, 13, 14)]


def masked_store(lengths: list[int]) -> FakeStore:
    """The same documents, every third token of which is a target."""
    store = store_of(lengths)
    store.trained = np.concatenate([(np.arange(length) % 3 == 2) for length in lengths]).astype(np.uint8)
    return store


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize(("lengths", "passes"), [([3], 9), ([1, 2], 4), ([5, 3, 9, 1, 14], 3)])
def test_several_passes_are_a_store_of_as_many_copies(lengths: list[int], passes: int, isolate: bool) -> None:
    packing = StreamPacking(store_of(lengths), 8, isolate).repeated(passes)
    copies = store_of(lengths * passes)
    copies.tokens = np.tile(store_of(lengths).tokens, passes)
    expected = StreamPacking(copies, 8, isolate)
    assert (packing.num_packs, packing.num_tokens, packing.num_targets) == (
        expected.num_packs,
        expected.num_tokens,
        expected.num_targets,
    )
    for index in range(packing.num_packs):
        pack, same = packing.pack(index), expected.pack(index)
        assert pack.segment_lengths == same.segment_lengths
        np.testing.assert_array_equal(pack.input_ids, same.input_ids)
        np.testing.assert_array_equal(pack.labels, same.labels)


def test_whole_documents_are_packed_with_the_labels_of_their_targets() -> None:
    store = masked_store([5, 3, 9, 1, 14])
    packing = pack_documents(store, 16)
    packs = [packing.pack(i) for i in range(packing.num_packs)]
    assert sorted(np.concatenate([pack.input_ids for pack in packs])) == sorted(store.tokens)
    labels = np.concatenate([pack.labels for pack in packs])
    inputs = np.concatenate([pack.input_ids for pack in packs])
    targets = sorted(store.tokens[store.trained == 1])
    assert sorted(labels[labels != IGNORE_INDEX]) == targets
    np.testing.assert_array_equal(inputs[labels != IGNORE_INDEX] + 1, labels[labels != IGNORE_INDEX])
    assert packing.num_targets == len(targets)
    assert sum(len(pack.segment_lengths) for pack in packs) == 5


def test_passes_over_whole_documents_fill_packs() -> None:
    packing = pack_documents(masked_store([5, 6]), 16).repeated(6)
    assert packing.num_packs == 5 and packing.num_tokens == 66  # 11 tokens in one pack of 16 before
    assert sorted(document for index in range(5) for document in packing.documents(index)) == [0] * 6 + [1] * 6
