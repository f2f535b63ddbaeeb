"""Stores that several processes build together are the same to the byte as those of one process."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tiny_kinds import SPECS, STORES, row_of, write_kinds
from tiny_tokenizers import WORDS

import llmtrain
from llmtrain.data.store import shards
from llmtrain.data.store.build import find_or_build
from llmtrain.data.store.shards import make_shards
from llmtrain.data.store.token_store import is_store
from llmtrain.system.lease import try_to_take

TESTS = Path(__file__).resolve().parents[3]
NAMES = [" ".join(f"{word}{number}" for word in f"{WORDS} größer".split()) for number in range(60)]
REPEATED = [*NAMES, *NAMES[:9], f"{NAMES[3]} more"]
CLEAN = {"exact_dedup": True, "near_dedup": 0.7, "min_chars": 12}


def write_odd(folder: Path) -> None:
    """Files of every kind: empty, bad rows, a giant row, compressed, tables, a data set in the hub's layout."""
    folder.mkdir()
    rows = [json.dumps(row_of(name)) for name in NAMES[:20]]
    (folder / "a_empty.jsonl").write_text("")
    (folder / "b_bad.jsonl").write_text("\n".join(["{broken", *rows[:5], '{"x": 1}', *rows[5:9], '"text"']) + "\n")
    (folder / "c_giant.jsonl").write_text(json.dumps(row_of(f"{WORDS}\n" * 300)) + "\n")
    with gzip.open(folder / "d_packed.jsonl.gz", "wt") as file:
        file.write("\n".join(rows[9:15]) + "\n")
    table = pyarrow.Table.from_pylist([row_of(name) for name in NAMES[20:40]])
    pyarrow.parquet.write_table(table, folder / "e_table.parquet", row_group_size=7)
    (folder / "hub" / "data").mkdir(parents=True)
    (folder / "hub" / "README.md").write_text("---\npretty_name: x\n---\n")
    for split, names in (("train", NAMES[:30]), ("test", NAMES[30:])):
        table = pyarrow.Table.from_pylist([row_of(name) for name in names])
        pyarrow.parquet.write_table(table, folder / "hub" / "data" / f"{split}-00000-of-00001.parquet")


def sources(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> kind and data of each case."""
    rows, evaluated = str(folder / "rows.jsonl"), str(folder / "evaluated.txt")
    clean = CLEAN | {"decontaminate": [evaluated], "decontaminate_ngram": 4}
    odd = {"train": {"path": str(folder / "odd"), "exclude": ["hub/*"]}, "on_bad_row": "skip"}
    return {
        **{kind: (kind, {"train": rows}) for kind in SPECS},
        "cleaned": ("text", {"train": [rows, str(folder / "more.jsonl")], "clean": clean}),
        "held out": ("text", {"train": rows, "eval": str(folder / "more.jsonl")}),
        "odd texts": ("text", odd),
        "odd chats": ("chats", odd),
        "odd pairs": ("pairs", odd),
        "hub": ("text", {"train": str(folder / "odd" / "hub")}),
        "text file": ("text", {"train": str(folder / "long.txt"), "eval_fraction": 0}),
    }


CASES = list(sources(Path()))
KILLS = [(1, "before"), (1, "after"), (3, "before"), (3, "after")]


def with_cache(data: dict[str, Any], cache: Path) -> dict[str, Any]:
    return (
        {"eval_fraction": 0.2, **data, "cache_dir": str(cache)}
        if "eval" not in data
        else data | {"cache_dir": str(cache)}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """Name of a build -> its cache and what was reported: of every case by 1, 2 and 4 workers, and with kills."""
    folder = tmp_path_factory.mktemp("shared")
    write_kinds(folder / "rows.jsonl", REPEATED)
    write_kinds(folder / "more.jsonl", [*NAMES[5:15], *(f"another {name} {name}" for name in NAMES[:30])])
    (folder / "evaluated.txt").write_text(NAMES[7])
    (folder / "long.txt").write_text("".join(f"{name}\n" for name in NAMES) * 30)
    write_odd(folder / "odd")
    builds = {f"{case} by {workers}": (case, workers, None) for case in CASES for workers in (1, 2, 4)}
    builds |= {f"{kind} killed {kill}": (kind, 2, kill) for kind in ("text", "cleaned", "pairs") for kill in KILLS}
    cases, caches = [], {}
    for number, (name, (case, workers, kill)) in enumerate(builds.items()):
        kind, data = sources(folder)[case]
        caches[name] = folder / f"cache-{number}"
        cases.append([kind, with_cache(data, caches[name]), workers, kill])
    (folder / "runs").mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    paths = os.pathsep.join([str(TESTS), str(Path(llmtrain.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, TESTS / "shared_builds.py", folder / "runs", folder / "cases.json"],
        env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        check=True,
    )
    lines = json.loads(done.stdout.splitlines()[-1])
    caches["folder"] = folder
    return {name: (cache, found) for (name, cache), found in zip(caches.items(), [*lines, []], strict=True)}


def stores_in(cache: Path) -> dict[str, bytes]:
    """Every file of the stores in a cache."""
    folders = [folder for folder in cache.iterdir() if is_store(folder)]
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for folder in folders
        for path in folder.iterdir()
        if path.name != "lock"
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES)
def test_stores_are_the_same_to_the_byte_by_one_two_and_four_workers_and_by_training(
    built: dict[str, tuple[Path, list[str]]], tmp_path: Path, case: str
):
    kind, data = sources(built["folder"][0])[case]
    STORES[kind](with_cache(data, tmp_path / "alone"), lambda line: None)  # one shard: SHARD_BYTES as it is
    alone = stores_in(tmp_path / "alone")
    assert alone
    for workers in (1, 2, 4):
        cache, lines = built[f"{case} by {workers}"]
        assert stores_in(cache) == alone
        assert not list((cache / "shards").iterdir())
        if workers == 4 and case != "hub":
            assert any("by 4 processes on" in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", KILLS, ids=str)
@pytest.mark.parametrize("case", ["text", "cleaned", "pairs"])
def test_a_killed_worker_costs_no_more_than_its_shard(
    built: dict[str, tuple[Path, list[str]]], case: str, kill: tuple[int, str]
):
    cache, lines = built[f"{case} killed {kill}"]
    assert stores_in(cache) == stores_in(built[f"{case} by 2"][0])
    assert not list((cache / "shards").iterdir())
    if kill[0] == 3:
        assert any("by 2 processes on" in line for line in lines), lines  # what it had made is used


def test_training_shares_with_a_process_that_prepares_and_waits_for_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    write_kinds(tmp_path / "rows.jsonl", NAMES)
    data = with_cache({"train": str(tmp_path / "rows.jsonl")}, tmp_path / "cache")
    specs = SPECS["text"](data, str)
    (spec,) = specs
    (name, items), *_ = shards._cut(spec.kind, spec.kind.read(spec.source, shards.SourceLedger(path="")))
    making = shards._Making(spec, str)
    folder = making._folder(name)
    lease = making._claimed(folder, shards.DOCUMENTS)
    assert lease is not None
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if "waiting for 1 shard " in line:
            making._make(folder, lease, items)

    stores = find_or_build(specs, report)
    assert any("waiting for 1 shard that other processes make" in line for line in lines)
    STORES["text"](with_cache(data, tmp_path / "alone"), str)
    assert stores_in(tmp_path / "cache") == stores_in(tmp_path / "alone")
    assert stores.train[0].num_documents


def test_an_error_late_in_a_source_keeps_the_shards_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    path = write_kinds(tmp_path / "rows.jsonl", NAMES)
    path.write_text(path.read_text() + "{broken\n")
    data = with_cache({"train": str(path)}, tmp_path / "cache")
    (spec,) = SPECS["chats"](data, str)
    with pytest.raises(ValueError, match=r"rows\.jsonl:61: malformed JSON"):
        make_shards(spec, str)
    made = list((tmp_path / "cache" / "shards").glob("*/documents.npz"))
    assert len(made) > 10
    write_kinds(path, NAMES)
    lines: list[str] = []
    STORES["chats"](data, lines.append)
    assert any(f"{len(made)} shards at the beginning made already" in line for line in lines)
    assert not list((tmp_path / "cache" / "shards").iterdir())


def test_a_shard_that_was_lost_before_the_stores_are_joined_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    path = write_kinds(tmp_path / "rows.jsonl", REPEATED)
    data = with_cache({"train": str(path), "clean": CLEAN}, tmp_path / "cache")
    specs = SPECS["text"](data, str)
    (spec,) = specs
    plan = make_shards(spec, str)
    assert plan is not None
    lost, damaged = shards.documents_of(spec, plan)[1:3]
    lost.unlink()
    damaged.write_bytes(b"damaged")
    lines: list[str] = []
    find_or_build(specs, lines.append)  # reads the source again, with what it has seen of duplicates forgotten
    assert any("1 of" in line and "shards missing" in line for line in lines)
    assert any(f"{damaged}: is made again" in line for line in lines)
    STORES["text"](with_cache(data, tmp_path / "alone"), str)
    assert stores_in(tmp_path / "cache") == stores_in(tmp_path / "alone")


def test_a_shard_that_another_process_took_over_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    monkeypatch.setattr("llmtrain.system.lease.CHECK_SECONDS", -1.0)
    path = write_kinds(tmp_path / "rows.jsonl", NAMES)
    (spec,) = SPECS["pairs"](with_cache({"train": str(path)}, tmp_path / "cache"), str)
    lines: list[str] = []
    make, taken = spec.kind.make, []

    def suspended(items: Any, made: Any) -> None:
        make(items, made)
        if not taken:
            (folder,) = (each.parent for each in (tmp_path / "cache" / "shards").glob("*/lease-000001.json"))
            (folder / "lease-000001.json").rename(folder / "moved")
            taken.append(try_to_take(folder, shards.Watch(), str))

    object.__setattr__(spec.kind, "make", suspended)

    def report(line: str) -> None:
        lines.append(line)
        if "waiting for" in line:
            taken[0].release()

    assert make_shards(spec, report) is not None
    assert any("was taken over by" in line for line in lines)
