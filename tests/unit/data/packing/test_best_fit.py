"""Best fit by lengths gives the bins of best fit item by item, and a store's packs are chosen once."""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_left, insort
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from llmtrain.data.packing import documents
from llmtrain.data.packing.best_fit import Bins, best_fit
from llmtrain.data.packing.documents import pack_documents
from llmtrain.data.store.token_store import TokenStore
from llmtrain.protocols import Array


def one_by_one(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The longest item first, each where it leaves the least room; of bins with as much, the last that got it."""
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(rooms, lengths[index])
        if place == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del rooms[place], with_room[room]
        bins[chosen].append(index)
        left = room - lengths[index]
        if left:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(chosen)
    return bins


def packed(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    bins = best_fit(np.array(lengths, dtype=np.int64), capacity)
    return [bins[index] for index in range(len(bins))]


def test_best_fit_takes_the_place_that_leaves_the_least_room() -> None:
    assert packed([9, 7, 5, 3], 10) == [[0], [1, 3], [2]]


@pytest.mark.parametrize("capacity", [5, 16, 100, 70_000])
def test_bins_are_those_of_one_item_after_the_other(capacity: int) -> None:
    drawn = random.Random(capacity)
    for _ in range(200):
        longest = drawn.randint(1, capacity)
        lengths = [drawn.randint(1, longest) for _ in range(drawn.randint(0, 120))]
        assert packed(lengths, capacity) == one_by_one(lengths, capacity)


def store_in(folder: Path, lengths: Sequence[int]) -> TokenStore:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(offsets[-1]).astype(np.uint16)
    return TokenStore(folder, "train", tokens, offsets, np.zeros(len(lengths), dtype=np.int64), 0)


def test_the_packs_of_a_store_are_chosen_once_and_then_mapped(tmp_path: Path) -> None:
    store = store_in(tmp_path, [5, 3, 9, 1, 14])
    first = pack_documents(store, 16)
    with patch.object(documents, "best_fit", side_effect=AssertionError("packed a second time")):
        second = pack_documents(store, 16)
    assert isinstance(second.bins.items.base, np.memmap)
    for index in range(first.num_packs):
        assert second.documents(index) == first.documents(index)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "train.packs-16-documents-1.npy"]
    other = pack_documents(store, 20)  # another capacity: other packs
    assert other.num_packs < first.num_packs


def test_of_several_processes_one_chooses_and_the_others_wait(tmp_path: Path) -> None:
    store, calls, said = store_in(tmp_path, [5, 3, 9, 1, 14]), [], []
    everyone = threading.Barrier(4)

    def slow(lengths: Array, capacity: int) -> Bins:
        calls.append(capacity)
        while len(said) < 3:  # all others wait for this one
            time.sleep(0.001)
        return best_fit(lengths, capacity)

    def start(_: int) -> int:
        everyone.wait()
        return pack_documents(store, 16, said.append).num_packs

    with patch.object(documents, "best_fit", slow), ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(start, range(4)))) == 1
    assert calls == [16] and all("another process builds this" in line for line in said)


def test_a_store_that_cannot_be_written_is_packed_in_memory(tmp_path: Path) -> None:
    store = store_in(tmp_path / "gone", [5, 3])
    assert pack_documents(store, 16).num_packs == 1
    assert not (tmp_path / "gone").exists()
