"""What ends a launch, and how the ranks of a launch notice each other's end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmtrain.system.ending import Ending
from llmtrain.train.engines.connections import Connections, Event
from llmtrain.train.engines.watchdog import Seen, late_ranks, stack_of_main_thread

LIMIT_SECONDS = 60


class Store:
    """torch's, in one process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def add(self, key: str, amount: int) -> int:
        return int(self.values.setdefault(key, str(amount)))

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def main(store: Store) -> Iterator[Connections]:
    connections = Connections(store, 0, {"MASTER_ADDR": "localhost"})
    yield connections
    connections.close()


def joined(store: Store, main: Connections, rank: int) -> Connections:
    """Another rank's connections, once rank 0 has welcomed it."""
    with ThreadPoolExecutor(1) as pool:
        connections = pool.submit(Connections, store, rank, {})
        while not connections.done():
            main.receive(0.01)
        return connections.result()


def received(connections: Connections, wanted: Callable[[list[Event]], bool]) -> list[Event]:
    """What comes until it is what is wanted."""
    events, deadline = list[Event](), time.monotonic() + LIMIT_SECONDS
    while not wanted(events):
        assert time.monotonic() < deadline
        events += connections.receive(0.1)
    return events


def test_messages_come_in_order_from_the_rank_that_sent_them(store: Store, main: Connections) -> None:
    first, second = (joined(store, main, rank) for rank in (1, 2))
    assert main.ranks == [1, 2]  # before either has sent a message
    first.send(0, {"a": 1})
    second.send(0, {"b": 1})
    first.send(0, {"a": 2})
    events = received(main, lambda events: len(events) == 3)
    assert [event.message for event in events if event.rank == 1] == [{"a": 1}, {"a": 2}]
    assert [event.message for event in events if event.rank == 2] == [{"b": 1}]
    main.send_all({"c": 1})
    for each in (first, second):
        assert received(each, bool) == [Event(0, {"c": 1})]
        each.close()


def connect_and_wait(store: Store) -> None:
    connections = Connections(store, 1, {})
    if os.fork() == 0:  # a child of the rank, which outlives it
        time.sleep(LIMIT_SECONDS)
        os._exit(0)
    connections.send(0, {"ready": True})
    signal.pause()


def test_a_kill_is_noticed_though_a_child_of_the_process_goes_on(store: Store, main: Connections) -> None:
    process = multiprocessing.get_context("fork").Process(target=connect_and_wait, args=(store,), daemon=True)
    process.start()
    assert received(main, bool) == [Event(1, {"ready": True})]
    process.kill()
    assert received(main, bool) == [Event(1, None)]


@pytest.mark.parametrize(
    "said", [b'{"rank": 1, "key": "guessed"}\n{"ending": {}}\nnothing', b"1\n", b"GET / HTTP/1.1\r\n"]
)
def test_a_stranger_is_no_rank(store: Store, main: Connections, said: bytes) -> None:
    assert main._listening is not None
    with socket.create_connection(("localhost", main._listening.getsockname()[1])) as stranger:
        stranger.sendall(said)
        rank = joined(store, main, 2)
        rank.send(0, {"a": 1})
        assert received(main, bool) == [Event(2, {"a": 1})]
        assert main.ranks == [2]
        rank.close()


@pytest.mark.parametrize(
    ("seen", "late"),
    [
        ({0: (5, 40), 1: (4, 60), 2: (5, 41)}, [1]),
        ({0: (5, 40), 1: (4, 60), 2: (3, 50)}, [1, 2]),
        ({0: (5, 20), 1: (4, 60)}, []),  # nobody has waited for long
        ({0: (4, 2), 1: (5, 40)}, []),  # rank 0 writes a checkpoint
        ({0: (5, 90), 1: (5, 90)}, []),  # all are in the same place
    ],
)
def test_a_rank_is_late_if_another_has_waited_for_it(seen: dict[int, tuple[int, float]], late: list[int]) -> None:
    ranks = {rank: Seen("host", count, "backward", idle) for rank, (count, idle) in seen.items()}
    assert late_ranks(ranks, timeout_seconds=30)[0] == late


def test_a_stack_begins_with_where_the_thread_is() -> None:
    assert stack_of_main_thread().startswith("at watchdog.py:")
    assert " < test_watchdog.py:" in stack_of_main_thread()


@pytest.mark.parametrize(
    ("ending_rank", "printed_by"),
    [(0, {1, 4}), (3, {0, 4}), (4, {0})],  # two nodes of four ranks: the first other rank, and the first of each node
)
def test_a_ranks_end_is_in_the_log_of_every_node(ending_rank: int, printed_by: set[int]) -> None:
    ending = Ending("lost", ending_rank, "node1", "its process was killed", 1)
    assert {rank for rank in range(8) if ending.is_printed_by(rank, {"LOCAL_RANK": str(rank % 4)})} == printed_by
    assert ending.line == f"stopped: rank {ending_rank} (node1) is gone: its process was killed"
