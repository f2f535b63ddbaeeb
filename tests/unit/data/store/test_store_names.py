"""Which store a source has: what decides its text names it; names, places and times do not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import write_model
from tiny_tokenizers import byte_level_bpe
from transformers import AutoTokenizer

from llmtrain.config.data import ChatDataConfig, CleanConfig, DataConfig
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.store.build import Stores
from llmtrain.data.store.kinds import build_chat_stores
from llmtrain.data.store.text import build_text_stores


def rows(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def built(cache: Path, *train: Path | dict[str, Any], lines: list[str] | None = None, **options: Any) -> Stores:
    options.setdefault("eval_fraction", 0)
    sources = [each if isinstance(each, dict) else str(each) for each in train]
    data = DataConfig.model_validate({"train": sources, "cache_dir": str(cache), **options})
    return build_text_stores(data, byte_level_bpe(), report=(lines if lines is not None else []).append)


def texts_of(stores: Stores) -> list[str]:
    (store,) = stores.train
    text = byte_level_bpe().decode(store.tokens.tolist(), skip_special_tokens=False)
    return [part.removeprefix("<bos>") for part in text.split("<eos>") if part]


def test_two_files_of_one_name_size_and_time_in_two_folders_have_two_stores(tmp_path: Path):
    one, two = rows(tmp_path / "1" / "a.jsonl", ["one"]), rows(tmp_path / "2" / "a.jsonl", ["two"])
    for path in (one, two):
        os.utime(path, (10**9, 10**9))
    assert texts_of(built(tmp_path / "cache", one)) == ["one"]
    assert texts_of(built(tmp_path / "cache", two)) == ["two"]


@pytest.mark.parametrize("remembered", [False, True])
def test_an_edit_that_keeps_size_and_time_is_read(tmp_path: Path, monkeypatch, remembered: bool):
    if remembered:
        monkeypatch.setattr(pytest.importorskip("llmtrain.data.sources.content"), "SETTLED_SECONDS", -1.0)
    path = rows(tmp_path / "a.jsonl", ["one"])
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert texts_of(built(tmp_path / "cache", path)) == ["one"]
    path.write_text(path.read_text().replace("one", "two"))
    os.utime(path, ns=times)
    assert texts_of(built(tmp_path / "cache", path)) == ["two"]


def touched(path: Path) -> Path:
    os.utime(path, (5, 5))
    return path


def copied(path: Path) -> Path:
    return Path(shutil.copy(path, path.parent / "copy.jsonl"))


def renamed(path: Path) -> Path:
    return path.rename(path.parent / "another name.JSONL")


def moved(path: Path) -> Path:
    path.parent.rename(path.parent.parent / "elsewhere")
    return path.parent.parent / "elsewhere" / path.name


def linked(path: Path) -> Path:
    link = path.parent.parent / "link.jsonl"
    link.symlink_to(path)
    return link


@pytest.mark.parametrize("change", [touched, copied, renamed, moved, linked])
def test_a_touch_a_copy_a_move_or_another_name_keeps_the_store(tmp_path: Path, change: Callable[[Path], Path]):
    path = rows(tmp_path / "data" / "a.jsonl", ["one", "two"])
    first = built(tmp_path / "cache", path)
    path = change(path)
    lines: list[str] = []
    again = built(tmp_path / "cache", path, lines=lines)
    assert again.names == first.names
    assert not any("tokenizing" in line for line in lines)
    assert again.ledger.train[0].path == str(path)


def test_a_folder_that_moves_keeps_its_store_and_a_file_that_is_not_read_changes_nothing_but_the_account(
    tmp_path: Path,
):
    for name in ("x/b", "x/a", "c"):
        rows(tmp_path / "data" / f"{name}.jsonl", [name])
    first = built(tmp_path / "cache", tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "moved" / "picture.png").touch()
    again = built(tmp_path / "cache", tmp_path / "moved")
    assert again.names == first.names
    assert again.ledger.train[0].files_not_read == {".png": 1}


def test_a_cache_folder_that_moves_keeps_its_stores_and_their_names(tmp_path: Path):
    path = rows(tmp_path / "a.jsonl", ["one"])
    first = built(tmp_path / "cache", path)
    (tmp_path / "cache").rename(tmp_path / "other")
    lines: list[str] = []
    assert built(tmp_path / "other", path, lines=lines).names == first.names
    assert not any("tokenizing" in line for line in lines)
    shutil.copytree(tmp_path / "other" / first.train[0].path.name, tmp_path / "my store")
    assert built(tmp_path / "third", tmp_path / "my store").names == first.names


def test_what_decides_the_text_names_the_store(tmp_path: Path):
    def name(files: dict[str, str], **source: Any) -> str:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        (tmp_path / "data").mkdir()
        for file, text in files.items():
            (tmp_path / "data" / file).write_text(text)
        return built(tmp_path / "cache", {"path": str(tmp_path / "data"), **source}).names[0]

    one, two = '{"text": "1", "more": "x"}\n', '{"text": "2", "more": "y"}\n'
    first = name({"a.jsonl": one, "b.jsonl": two})
    assert name({"p.jsonl": one, "q.jsonl": two}) == first
    assert name({"a.jsonl": one, "b.jsonl": two}, weight=2.0) == first
    others = [
        name({"a.jsonl": two, "b.jsonl": one}),
        name({"a.jsonl": one}),
        name({"a.jsonl": one + two}),
        name({"a.txt": one, "b.jsonl": two}),
        name({"a.jsonl": one, "b.jsonl": two}, text_field="more"),
        name({"a.jsonl": one, "b.jsonl": two}, slice="0%:100%"),
    ]
    assert len({first, *others}) == 7


def test_evaluation_files_of_decontaminate_count_by_content(tmp_path: Path):
    path = rows(tmp_path / "a.jsonl", ["one two three", "four five six"])
    evaluated = tmp_path / "e" / "eval.txt"
    evaluated.parent.mkdir()
    evaluated.write_text("one two three")

    def name(where: Path) -> list[str]:
        clean = CleanConfig(decontaminate=[str(where)], decontaminate_ngram=3)
        return built(tmp_path / "cache", path, clean=clean).names

    first = name(evaluated)
    evaluated.parent.rename(tmp_path / "f")
    assert name(tmp_path / "f" / "eval.txt") == first
    (tmp_path / "f" / "eval.txt").write_text("four five six")
    assert name(tmp_path / "f" / "eval.txt") != first


def test_duplicates_across_sources_are_named_by_the_content_of_the_sources_before(tmp_path: Path):
    one, two = rows(tmp_path / "a.jsonl", ["x", "y"]), rows(tmp_path / "b.jsonl", ["y", "z"])
    clean = CleanConfig(exact_dedup=True)
    first = built(tmp_path / "cache", one, two, clean=clean).names
    one = moved(rows(tmp_path / "sub" / "a.jsonl", ["x", "y"]))
    assert built(tmp_path / "cache", one, two, clean=clean).names == first
    rows(one, ["x", "w"])
    assert built(tmp_path / "cache", one, two, clean=clean).names[1] != first[1]


def test_texts_beside_rows_do_not_name_a_store_of_chats(tmp_path: Path):
    encoder = ChatEncoder(AutoTokenizer.from_pretrained(write_model(tmp_path / "model")), plain=False, loss_on="all")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    data = ChatDataConfig.model_validate(
        {"train": str(tmp_path / "data"), "eval_fraction": 0, "cache_dir": str(tmp_path / "cache")}
    )
    lines: list[str] = []
    first = build_chat_stores(data, encoder, report=lines.append)
    (tmp_path / "data" / "notes.txt").write_text("not read here")
    again = build_chat_stores(data, encoder, report=lines.append)
    assert again.names == first.names
    assert "files not read: 1 .txt" in lines[-1]


def test_processes_that_hash_at_the_same_time_share_the_work_and_a_torn_table_is_rebuilt(tmp_path: Path, monkeypatch):
    content = pytest.importorskip("llmtrain.data.sources.content")
    files = [tmp_path / f"{i}.bin" for i in range(8)]
    for number, path in enumerate(files):
        path.write_bytes(bytes(range(1, 256)) * (number + 1))
    monkeypatch.setattr(content, "SETTLED_SECONDS", -1.0)
    read: list[Path] = []
    block_hash = content._block_hash

    def counting(block):
        read.append(block[1])
        return block_hash(block)

    monkeypatch.setattr(content, "_block_hash", counting)

    def hashes(_: int = 0) -> list[str]:
        return content.content_hashes(files, str(tmp_path / "cache"), report=lambda line: None)

    with ThreadPoolExecutor(3) as pool:  # a lock of a file is held by one of its opens, in threads as in processes
        found = list(pool.map(hashes, range(3)))
    assert len(set(found[0])) == 8 and found[1] == found[2] == found[0]
    assert sorted(read) == files  # each is read once
    table = tmp_path / "cache" / "file-hashes" / "table"
    whole = table.read_bytes()
    for damaged, num_lost in (
        (whole[:-5], 1),
        (whole[:70] + bytes([whole[70] ^ 1]) + whole[71:], 1),
        (b"", 8),
        (b"junk" * 99, 8),
    ):
        table.write_bytes(damaged)
        read.clear()
        assert hashes() == hashes() == found[0]
        assert len(read) == num_lost


def test_a_file_that_changed_a_moment_ago_is_hashed_again(tmp_path: Path, monkeypatch):
    content = pytest.importorskip("llmtrain.data.sources.content")
    path = tmp_path / "a"
    path.write_text("x")
    content.content_hashes([path], str(tmp_path / "cache"), report=lambda line: None)
    assert (tmp_path / "cache" / "file-hashes" / "table").read_bytes() == b""


def test_a_file_of_many_blocks_is_named_by_all_of_them(tmp_path: Path, monkeypatch):
    content = pytest.importorskip("llmtrain.data.sources.content")
    monkeypatch.setattr(content, "BLOCK_BYTES", 4)
    names = set()
    for number, data in enumerate((b"abcdefghij", b"abcdefghiX", b"Xbcdefghij", b"efghabcdij", b"abcdefgh", b"")):
        path = tmp_path / str(number)
        path.write_bytes(data)
        names |= set(content.content_hashes([path], str(tmp_path / "cache"), report=lambda line: None))
    assert len(names) == 6
