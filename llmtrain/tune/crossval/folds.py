"""Which fold holds a group of rows out: balanced in rows, the same for the same groups and seed.

Groups are placed one by one, the largest first, each into the fold with the fewest rows so far (Graham 1969). So no two
folds differ by more rows than the largest group has; of groups of one row, by one.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from hashlib import blake2b


def assign(sizes: Mapping[str, int], num_folds: int, seed: int) -> dict[str, int]:
    """Group -> number of its fold, from 0; `sizes`: group -> its rows.

    Groups of equal size come in an order drawn from `seed`, whatever the order of `sizes`. Every fold gets at least one
    group. Raises ValueError if there are fewer groups than folds.
    """
    if num_folds > len(sizes):
        raise ValueError(f"{num_folds} folds of {len(sizes)} groups")

    def place(group: str) -> tuple[int, bytes]:
        return -sizes[group], blake2b(f"{seed} {group}".encode(), digest_size=8).digest()

    folds = [(0, 0, number) for number in range(num_folds)]  # (rows, groups, number)
    assigned: dict[str, int] = {}
    for group in sorted(sizes, key=place):
        num_rows, num_groups, number = folds[0]
        assigned[group] = number
        heapq.heapreplace(folds, (num_rows + sizes[group], num_groups + 1, number))
    return assigned
