"""Best-fit decreasing bin packing (Johnson 1973), by lengths instead of by items, in a few bytes per item.

lengths [9, 7, 5, 3], capacity 10    bins [0], [1, 3], [2]

`in_order` keeps the items in theirs, at the price of room in the bins.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from llmtrain.system.typing import Array

ALGORITHM_VERSION = 1  # part of the name under which bins are kept


@dataclass(frozen=True)
class Bins:
    """The items of each bin, end to end."""

    starts: Array  # (bins + 1,) unsigned: items of bin b are items[starts[b]:starts[b + 1]]
    items: Array  # (items,) unsigned

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[int]:
        items: list[int] = self.items[int(self.starts[index]) : int(self.starts[index + 1])].tolist()
        return items

    def to_array(self) -> Array:
        """Both arrays as one: `from_array` takes it, given the number of items."""
        return np.concatenate([self.starts, self.items])

    @classmethod
    def from_array(cls, array: Array, num_items: int) -> Bins:
        return cls(array[: len(array) - num_items], array[len(array) - num_items :])


def best_fit(lengths: Array, capacity: int) -> Bins:
    """The items of each bin, no bin over `capacity`; of items without length, no bins.

    The longest item comes first, the first of equals before the others, and goes where it leaves the least room; bins
    hold at most 11/9 of the fewest possible. Items of one length fill a bin before they touch another with as much
    room, so all bins with as much room are filled in one operation.
    """
    assert not len(lengths) or (lengths.min() > 0 and lengths.max() <= capacity), (lengths.min(), lengths.max())
    dtype = np.uint32 if len(lengths) < 1 << 32 else np.uint64
    rank = np.uint16 if capacity < 1 << 16 else np.int64  # numpy sorts 16 bits by counting
    order = np.argsort((capacity - lengths).astype(rank), kind="stable").astype(dtype)
    bin_of = np.empty(len(lengths), dtype)  # of the items in `order`
    rooms = _Rooms()
    placed = num_bins = 0
    counts = np.bincount(lengths)
    for length in np.flatnonzero(counts)[::-1].tolist():
        end = placed + int(counts[length])
        while placed < end:
            room = rooms.least(length)
            per_bin = (room or capacity) // length
            wanted = -(-(end - placed) // per_bin)
            if room is None:
                room, bins = capacity, np.arange(num_bins, num_bins + wanted, dtype=dtype)
                num_bins += wanted
            else:
                bins = rooms.take(room, wanted)
            num_items = min(len(bins) * per_bin, end - placed)
            bin_of[placed : placed + num_items] = np.repeat(bins, per_bin)[:num_items]
            num_full, rest = divmod(num_items, per_bin)
            rooms.put(room - per_bin * length, bins[:num_full])
            rooms.put(room - rest * length, bins[num_full:])
            placed += num_items
    starts = np.zeros(num_bins + 1, dtype)
    np.cumsum(np.bincount(bin_of, minlength=num_bins), out=starts[1:])
    return Bins(starts, order[np.argsort(bin_of, kind="stable")])


def in_order(lengths: Array, capacity: int) -> Bins:
    """The items of each bin, in their own order: an item that does not fit into the last bin opens the next.

    lengths [5, 4, 3, 9], capacity 10    bins [0, 1], [2], [3]
    """
    assert not len(lengths) or (lengths.min() > 0 and lengths.max() <= capacity), (lengths.min(), lengths.max())
    dtype = np.uint32 if len(lengths) < 1 << 32 else np.uint64
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = [0]
    while starts[-1] < len(lengths):
        before = int(ends[starts[-1] - 1]) if starts[-1] else 0
        starts.append(int(np.searchsorted(ends, before + capacity, side="right")))
    return Bins(np.array(starts, dtype), np.arange(len(lengths), dtype=dtype))


class _Rooms:
    """Bins by the room left in them; of those with as much room, the last one put comes out first."""

    def __init__(self) -> None:
        self._rooms: list[int] = []  # that have bins, in order
        self._stacks: dict[int, list[Array]] = {}

    def least(self, length: int) -> int | None:
        """The least room that holds `length`."""
        place = bisect_left(self._rooms, length)
        return self._rooms[place] if place < len(self._rooms) else None

    def take(self, room: int, wanted: int) -> Array:
        """Bins with this room, at most `wanted`, and no longer here."""
        stack, taken = self._stacks[room], []
        while stack and wanted:
            top = stack.pop()
            kept = max(0, len(top) - wanted)
            taken.append(top[kept:][::-1])
            wanted -= len(top) - kept
            if kept:
                stack.append(top[:kept])
        if not stack:
            del self._stacks[room]
            self._rooms.remove(room)
        return np.concatenate(taken)

    def put(self, room: int, bins: Array) -> None:
        """Add bins with this room, in order; full ones need no place."""
        if not room or not len(bins):
            return
        if room not in self._stacks:
            self._stacks[room] = []
            insort(self._rooms, room)
        self._stacks[room].append(bins)
