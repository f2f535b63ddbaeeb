"""Processes that cannot train together are refused, on each of them, before they form a group."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from llmtrain.runs import meeting
from llmtrain.runs.folder import check_folder
from llmtrain.runs.meeting import Meeting, check_meeting, difference, started_as
from llmtrain.system.stop_signal import Stopped

CONFIG = {"optim": {"lr": 0.1}, "data": {"train": [{"path": "rows.jsonl"}]}}


@pytest.fixture(autouse=True)
def rank_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(meeting, "VISIBLE_SECONDS", 0.3)
    monkeypatch.setattr(meeting, "POLL_SECONDS", 0.01)


def met(*calls: Callable[[dist.Store, int], str]) -> list[str]:
    """What each rank, a thread here, is answered."""
    store, answers = dist.HashStore(), [""] * len(calls)

    def call(rank: int) -> None:
        answers[rank] = calls[rank](store, rank)

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def main_in(folder: Path, world_size: int = 3) -> Callable[[dist.Store, int], str]:
    return lambda store, rank: Meeting(store, rank, world_size, 10, lambda: False).as_main(folder, CONFIG)


def other_in(folder: Path, config: dict[str, Any] = CONFIG, world_size: int = 3) -> Callable[[dist.Store, int], str]:
    return lambda store, rank: Meeting(store, rank, world_size, 10, lambda: False).as_other(folder, config)


def test_processes_that_see_one_folder_meet_and_leave_nothing_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert met(main_in(folder), other_in(folder), other_in(folder)) == ["", "", ""]
    assert not list(tmp_path.iterdir())
    folder.mkdir()
    (folder / "config.yaml").touch()
    assert met(main_in(folder), other_in(folder), other_in(folder)) == ["", "", ""]
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_folder_that_is_local_to_a_node_is_refused_on_every_rank(tmp_path: Path) -> None:
    shared, local = tmp_path / "shared", tmp_path / "local"
    local.mkdir()
    answers = met(main_in(shared), other_in(shared), other_in(local))
    assert len(set(answers)) == 1
    assert f"run.dir={local} of rank 2 on " in answers[0] and answers[0].endswith("a folder that all nodes share")


def test_rank_0_stays_until_its_refusal_has_been_read(tmp_path: Path) -> None:
    """The store may end with it, and the others would have no reason to show."""
    was_read: list[bool] = []

    def main(store: dist.Store, rank: int) -> str:
        answer = main_in(tmp_path / "shared")(store, rank)
        was_read.append(store.check(["read/1", "read/2"]))
        return answer

    answers = met(main, other_in(tmp_path / "shared"), other_in(tmp_path / "local"))
    assert answers[0] and was_read == [True]


def test_a_file_that_is_seen_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "VISIBLE_SECONDS", 20)
    timer = threading.Timer(0.2, (tmp_path / "late").touch)
    timer.start()
    assert meeting.is_seen(tmp_path / "late")
    timer.join()


def test_a_folder_that_rank_0_cannot_write_is_refused_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    answers = met(main_in(folder), other_in(folder), other_in(folder))
    assert answers == [f"run.dir={folder}: cannot be written (Not a directory); choose another folder"] * 3


def test_another_configuration_is_refused_by_its_key(tmp_path: Path) -> None:
    other = CONFIG | {"optim": {"lr": 0.2}}
    answers = met(main_in(tmp_path), other_in(tmp_path), other_in(tmp_path, other))
    assert len(set(answers)) == 1
    assert "was started with optim.lr=0.2, rank 0 on " in answers[0] and "with 0.1: give all nodes" in answers[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "a CPU"}, "rank 5 on node1 has a CPU, rank 0 on node0 a GPU: ask for nodes of one kind"),
        (
            {"num_processes": "2"},
            "the node of rank 5 on node1 has 2 processes, that of rank 0 on node0 8: start equally",
        ),
        ({"num_devices": 4}, "rank 5 on node1 sees 4 devices, rank 0 on node0 8: ask for as many on each node"),
        (
            {"packages": {"torch": "2.12"}},
            "rank 5 on node1 has torch 2.12, rank 0 on node0 2.13: give all nodes one env",
        ),
        ({"packages": {}}, "rank 5 on node1 has torch None, rank 0 on node0 2.13: give all nodes one environment"),
        (
            {"code": "b"},
            "rank 5 on node1 and rank 0 on node0 run different code of llmtrain: give all nodes one checkout",
        ),
    ],
)
def test_unequal_nodes_are_refused_by_what_differs(changes: dict[str, Any], message: str) -> None:
    main = {"host": "node0", "device": "a GPU", "num_processes": "8", "num_devices": 8, "code": "a", "config": CONFIG}
    main["packages"] = {"torch": "2.13"}
    here = copy.deepcopy(main) | {"host": "node1"}
    assert difference(main, here, 5) == ""
    assert difference(main, here | changes, 5).startswith(message)


def test_more_processes_than_devices_are_refused_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints = iter(["", "2 processes were started on node1, which has 1 devices to use: start one per device"])
    monkeypatch.setattr(meeting, "missing_device", lambda: next(complaints))
    answers = met(main_in(tmp_path, 2), other_in(tmp_path, world_size=2))
    assert len(set(answers)) == 1 and answers[0].startswith("2 processes were started on node1")
    monkeypatch.setattr(meeting, "missing_device", lambda: "2 processes were started on node0")
    assert met(main_in(tmp_path, 2), other_in(tmp_path, world_size=2)) == ["2 processes were started on node0"] * 2


def test_a_process_without_a_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_devices, local_rank, is_missing in ((0, 3, False), (4, 3, False), (4, 4, True)):
        monkeypatch.setattr(meeting.torch.accelerator, "device_count", lambda count=num_devices: count)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert bool(meeting.missing_device()) is is_missing


def test_what_is_compared_is_equal_to_itself_through_the_store(tmp_path: Path) -> None:
    assert difference(started_as(CONFIG), started_as(CONFIG), 1) == ""
    assert {"torch", "transformers", "Python"} <= started_as(CONFIG)["packages"].keys()


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    alone = Meeting(dist.HashStore(), 0, 3, 0.05, lambda: False)
    with pytest.raises(ValueError, match="for rank 1, 2 of 3, which did not start training"):
        alone.as_main(tmp_path, CONFIG)
    assert not list(tmp_path.iterdir())
    other = Meeting(dist.HashStore(), 1, 3, 0.05, lambda: False)
    with pytest.raises(ValueError, match="for rank 0 of 3"):
        other.as_other(tmp_path, CONFIG)


def test_a_signal_ends_the_wait_for_who_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LEAVING_SECONDS", 0.05)
    with pytest.raises(Stopped):
        Meeting(dist.HashStore(), 0, 2, 100, lambda: True).as_main(tmp_path, CONFIG)


def test_one_process_meets_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_meeting(tmp_path, CONFIG, 1, lambda: False)


def test_what_a_killed_meeting_leaves_does_not_make_the_folder_another_run(tmp_path: Path) -> None:
    from llmtrain.config.recipes import PretrainConfig

    (tmp_path / f"{meeting.MEETING_PREFIX}1").touch()
    run = PretrainConfig.model_fields["run"].annotation
    assert run is not None
    check_folder(run(dir=str(tmp_path)), run(dir=str(tmp_path)))
