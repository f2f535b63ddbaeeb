"""`samples.jsonl` holds the samples of each rollout once, whatever their text and wherever a run was stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.rollout.sample_log import SampleLog
from llmtrain.system.json_lines import whole_lines


def write(log: SampleLog, *rollouts: int, response: str = "yes") -> None:
    for rollout in rollouts:
        log.write(rollout, [{"sample": rollout, "response": response, "score": 1.0}])


def kept(path: Path) -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [(row["rollout"], row["response"]) for row in rows]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.jsonl"


def log_of(path: Path) -> SampleLog:
    return SampleLog(path, lambda line: None)


def test_a_rollout_that_is_made_again_takes_the_place_of_it_and_of_later_ones(path: Path) -> None:
    write(log_of(path), 0, 1, 2)
    write(log_of(path), 1, response="again")
    assert kept(path) == [(0, "yes"), (1, "again")]


def test_samples_with_any_end_of_line_in_them_stay(path: Path) -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\r\nf"
    write(log_of(path), 0, response=text)
    write(log_of(path), 1)
    assert kept(path) == [(0, text), (1, "yes")]


@pytest.mark.parametrize("num_bytes", [1, 3, 5, 30])
def test_a_line_that_a_kill_has_torn_is_dropped(path: Path, num_bytes: int) -> None:
    log = log_of(path)
    write(log, 0)
    whole = len(path.read_bytes())
    write(log, 1, response="\u2028" * 9)
    path.write_bytes(path.read_bytes()[: whole + num_bytes])
    write(log_of(path), 1)
    assert kept(path) == [(0, "yes"), (1, "yes")]


def test_only_the_first_rollout_of_a_process_reads_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(log_of(path), 0)
    reads: list[Path] = []

    def counted(path: Path) -> Iterator[bytes]:
        reads.append(path)
        return whole_lines(path)

    with monkeypatch.context() as patched:
        patched.setattr("llmtrain.train.sample_file.whole_lines", counted)
        write(log_of(path), 1, 2, 3)
    assert reads == [path]
    assert [rollout for rollout, _ in kept(path)] == [0, 1, 2, 3]
