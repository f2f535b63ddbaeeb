"""A build that was killed or met a bad row goes on from what it finished, to the same store to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_kinds import STORES, row_of, write_kinds

import llmtrain

NAMES = [f"{number} words größer" for number in range(60)]
GOES_ON = "made already"


def built(kind: str, train: Path | list[str], cache: Path, lines: list[str] | None = None, **options: Any) -> Any:
    train = str(train) if isinstance(train, Path) else train
    data = {"train": train, "eval_fraction": 0.2, "cache_dir": str(cache), **options}
    return STORES[kind](data, (lines if lines is not None else []).append)


def files_of(stores: Any) -> dict[str, bytes]:
    folder = stores.train[0].path
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("store.json", "lock")}


def with_small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.data.store.shards.SHARD_BYTES", 1)
    monkeypatch.setattr("llmtrain.data.store.kinds.BATCH_ROWS", 4)
    monkeypatch.setattr("llmtrain.data.store.text.batch_chars", lambda: 100)


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts and conversations that are tokenized from here on."""
    counts: list[int] = []
    for place in ("llmtrain.data.tokenize.TextEncoder.encode", "llmtrain.data.chat.encode.ChatEncoder.encode"):
        module, name, method = place.rsplit(".", 2)
        encode = getattr(getattr(sys.modules[module], name), method)

        def counting(self: Any, batch: Any, encode: Any = encode) -> Any:
            counts.append(len(batch))
            return encode(self, batch)

        monkeypatch.setattr(place, counting)
    return counts


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches in which the builds of every kind were killed at every point of POINTS."""
    folder = tmp_path_factory.mktemp("kills")
    write_kinds(folder / "rows.jsonl", NAMES)
    (folder / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parents[3]), str(Path(llmtrain.__file__).parents[1])])
    points = json.dumps([[kind, *point] for kind in STORES for point in POINTS])
    subprocess.run(
        [sys.executable, folder / "program.py", folder, points], env={**os.environ, "PYTHONPATH": paths}, check=True
    )
    return folder


@pytest.fixture(scope="module")
def whole(kills: Path) -> Callable[[str], tuple[Any, int]]:
    """The stores of a kind that nothing stopped, and how many texts and conversations were tokenized; built once."""

    @cache
    def of_kind(kind: str) -> tuple[Any, int]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            with_small_units(monkeypatch)
            counts = count_encoded(monkeypatch)
            return built(kind, kills / "rows.jsonl", kills / f"{kind}-whole"), sum(counts)

    return of_kind


POINTS = [("save", 1, "before"), ("save", 3, "before"), ("save", 9, "after"), ("join", 1, "before")]
PROGRAM = """
import json, os, sys
from pathlib import Path
from tiny_kinds import STORES
from llmtrain.data.store import build, documents, kinds, shards, text

shards.SHARD_BYTES, kinds.BATCH_ROWS, text.batch_chars = 1, 4, lambda: 100


def kill(place, number, when):
    owner = documents.Documents if place == "save" else build
    original, calls = getattr(owner, place), []

    def run(*arguments):
        calls.append(place)
        if len(calls) == number and when == "before":
            os.kill(os.getpid(), 9)
        original(*arguments)
        if len(calls) == number:
            os.kill(os.getpid(), 9)

    setattr(owner, place, run)


folder = Path(sys.argv[1])
for kind, place, number, when in json.loads(sys.argv[2]):
    process = os.fork()
    if not process:
        kill(place, number, when)
        cache = folder / f"{kind}-{place}-{number}"
        STORES[kind]({"train": str(folder / "rows.jsonl"), "eval_fraction": 0.2, "cache_dir": str(cache)}, str)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9, (kind, place, status)
"""


@pytest.mark.parametrize("point", POINTS, ids=lambda point: "-".join(map(str, point)))
@pytest.mark.parametrize("kind", STORES)
def test_a_build_killed_outright_goes_on_to_the_same_store(
    kills: Path,
    whole: Callable[[str], tuple[Any, int]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    point: tuple[str, int, str],
):
    stores, num_encoded = whole(kind)
    with_small_units(monkeypatch)
    lines: list[str] = []
    counts = count_encoded(monkeypatch)
    resumed = built(kind, kills / "rows.jsonl", kills / f"{kind}-{point[0]}-{point[1]}", lines)
    assert files_of(resumed) == files_of(stores)
    assert resumed.ledger == stores.ledger and resumed.names == stores.names
    assert any(GOES_ON in line for line in lines) == (point[:2] in [("save", 3), ("save", 9)])
    assert (sum(counts) < num_encoded) == (point != POINTS[0]) and (sum(counts) < 15) == (point[0] == "join")


@pytest.mark.parametrize("fix", ["the row", "on_bad_row", "remove", "two files"])
@pytest.mark.parametrize("kind", STORES)
def test_what_was_finished_before_a_bad_row_is_used_when_it_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fix: str
):
    with_small_units(monkeypatch)
    path = write_kinds(tmp_path / "data" / "a.jsonl", NAMES[:50])
    after = "".join(json.dumps(row_of(name)) + "\n" for name in NAMES[50:])
    bad = path.parent / "b.jsonl" if fix == "two files" else path
    good = path.read_text() if bad == path else ""
    bad.write_text(good + "{broken\n" + after)
    source = path.parent
    with pytest.raises(ValueError, match=r"\.jsonl:\d+: malformed JSON"):
        built(kind, source, tmp_path / "cache")
    options: dict[str, Any] = {"on_bad_row": "skip"} if fix == "on_bad_row" else {}
    if fix != "on_bad_row":
        bad.write_text(good + (json.dumps(row_of("fixed")) + "\n" if fix == "the row" else "") + after)
    lines: list[str] = []
    counts = count_encoded(monkeypatch)
    resumed = built(kind, source, tmp_path / "cache", lines, **options)
    assert any(GOES_ON in line for line in lines)
    rest = sum(counts)
    counts.clear()
    whole = built(kind, source, tmp_path / "whole", **options)
    assert rest < sum(counts) / 2
    assert files_of(resumed) == files_of(whole) and resumed.ledger == whole.ledger
    assert len(list((tmp_path / "cache").glob("*/train.tokens"))) == 1  # nothing is kept twice


@pytest.mark.parametrize("kind", STORES)
def test_an_edit_of_what_was_finished_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    with_small_units(monkeypatch)
    path = write_kinds(tmp_path / "a.jsonl", NAMES[:40])
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError, match="malformed JSON"):
        built(kind, path, tmp_path / "cache")
    names = [*NAMES[:40]]
    names[21] = "another"
    write_kinds(path, names)
    lines: list[str] = []
    resumed = built(kind, path, tmp_path / "cache", lines)
    assert any(GOES_ON in line and "21 shards at the beginning" in line for line in lines)
    whole = built(kind, path, tmp_path / "whole")
    assert files_of(resumed) == files_of(whole) and resumed.ledger == whole.ledger


@pytest.mark.parametrize("kind", ["chats", "pairs", "labelled"])
def test_rows_that_were_skipped_are_not_taken_over_where_bad_rows_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    with_small_units(monkeypatch)
    path = write_kinds(tmp_path / "a.jsonl", NAMES)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmtrain.data.store.build.join", killed)
        with pytest.raises(KeyboardInterrupt):
            built(kind, path, tmp_path / "cache", on_bad_row="skip")
    lines: list[str] = []
    built(kind, path, tmp_path / "cache", lines, on_bad_row="error")
    assert not any(GOES_ON in line for line in lines)
