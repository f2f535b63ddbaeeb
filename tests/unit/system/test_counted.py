"""One thing is singular."""

from __future__ import annotations

import pytest

from llmtrain.data.store.build import _makers
from llmtrain.system.counted import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("shard",), "1 shard"),
        (0, ("row",), "0 rows"),
        (1_200, ("token",), "1,200 tokens"),
        (1, ("process", "processes"), "1 process"),
        (3, ("process", "processes"), "3 processes"),
    ],
)
def test_a_number_and_what_it_counts(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


def test_the_makers_of_one_shard() -> None:
    shard = {"host": "node0", "job": None, "pid": 1, "bytes": 1e6, "seconds": 1.0}
    assert _makers([shard]) == "1 shard: 1 by 1 process on node0, 1.0 MB/s each"
    assert _makers([shard, shard]).startswith("2 shards: 2 by 1 process on")
