"""Building and opening token stores: right, once, exact after a kill, bound to tokenizer and source."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import WORDS, byte_level_bpe, metaspace_bpe

from llmtrain.config.data import CleanConfig, DataConfig
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.text import FileText
from llmtrain.data.split import eval_share
from llmtrain.data.store import text as text_store
from llmtrain.data.store import token_store as store
from llmtrain.data.store.build import Stores
from llmtrain.data.store.documents import Damaged, Documents, Layout, join
from llmtrain.data.store.text import build_text_stores
from llmtrain.data.store.token_store import TokenStore, open_store
from llmtrain.system.files import LOCK, cache_root

TEXTS = [f"{i} {WORDS} größer" for i in range(200)]


def write_rows(path: Path, texts: list[str] = TEXTS) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def silent(message: str) -> None:
    pass


def config(tmp_path: Path, *train: Path, **options: object) -> DataConfig:
    options.setdefault("eval_fraction", 0.2)
    return DataConfig(train=[str(path) for path in train], cache_dir=str(tmp_path / "cache"), **options)


def documents(opened: TokenStore) -> list[list[int]]:
    offsets = opened.document_offsets
    return [opened.tokens[offsets[i] : offsets[i + 1]].tolist() for i in range(opened.num_documents)]


def texts_of(opened: TokenStore) -> list[str]:
    tokenizer = byte_level_bpe()
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in documents(opened)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (store.META, LOCK)}


def stores_in(cache: Path) -> list[Path]:
    return [folder for folder in cache.iterdir() if folder.name not in ("file-hashes", "shards")]


def with_small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few documents, and a shard for each document."""
    monkeypatch.setattr(text_store, "batch_chars", lambda: 300)
    monkeypatch.setattr("llmtrain.data.store.shards.SHARD_BYTES", 1)


def test_every_document_is_stored_in_order_in_one_split_with_its_specials_and_bytes(tmp_path: Path):
    stores = build_text_stores(config(tmp_path, write_rows(tmp_path / "a.jsonl")), byte_level_bpe(), report=silent)
    train, held_out = stores.train[0], stores.eval[0]
    found = texts_of(train)
    assert found == [text for text in TEXTS if text in set(found)]
    assert sorted(found + texts_of(held_out)) == sorted(TEXTS)
    assert 20 <= held_out.num_documents <= 60
    for ids in documents(train):
        assert ids[0] == 0 and ids[-1] == 1 and not {0, 1} & set(ids[1:-1])
    assert train.document_bytes.tolist() == [len(text.encode()) for text in found]
    assert train.num_bytes == sum(train.document_bytes)
    assert train.tokens.dtype == np.uint16


def test_the_ledger_closes_on_tokens_too(tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", [*TEXTS, "", TEXTS[0]])
    clean = CleanConfig(exact_dedup=True)
    stores = build_text_stores(config(tmp_path, path, clean=clean), byte_level_bpe(), report=silent)
    (ledger,) = stores.ledger.train
    assert ledger.read.documents == 202
    assert {step: tally.documents for step, tally in ledger.dropped.items()} == {"empty": 1, "exact_dedup": 1}
    for split, opened in (("train", stores.train[0]), ("eval", stores.eval[0])):
        tally = ledger.tokens[split]
        assert tally.tokens == opened.num_tokens == len(opened.tokens)
        assert tally.added_tokens == 2 * opened.num_documents
        assert tally.unpredicted_tokens == opened.num_documents == ledger.kept[split].documents
        assert ledger.kept[split].bytes == opened.num_bytes
    json.dumps(stores.ledger.to_dict())


def test_the_split_of_a_document_does_not_change_when_data_is_added(tmp_path: Path):
    few = build_text_stores(
        config(tmp_path, write_rows(tmp_path / "a.jsonl", TEXTS[:80])), byte_level_bpe(), report=silent
    )
    more = build_text_stores(
        config(tmp_path, write_rows(tmp_path / "b.jsonl", TEXTS[::-1])), byte_level_bpe(), report=silent
    )
    assert set(texts_of(few.eval[0])) == set(texts_of(more.eval[0])) & set(TEXTS[:80])


def test_a_larger_share_holds_out_a_superset(tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl")
    small = build_text_stores(config(tmp_path, path, eval_fraction=0.1), byte_level_bpe(), report=silent)
    large = build_text_stores(config(tmp_path, path, eval_fraction=0.3), byte_level_bpe(), report=silent)
    assert set(texts_of(small.eval[0])) < set(texts_of(large.eval[0]))


def test_a_store_is_built_once_and_found_again(tmp_path: Path):
    data = config(tmp_path, write_rows(tmp_path / "a.jsonl"))
    first = build_text_stores(data, byte_level_bpe(), report=silent)
    messages: list[str] = []
    again = build_text_stores(data, byte_level_bpe(), report=messages.append)
    assert again.train[0].path == first.train[0].path
    assert not any("tokenizing" in message for message in messages)
    assert again.ledger == first.ledger


@pytest.mark.parametrize("change", ["source", "tokenizer", "cleaning", "split", "bad rows"])
def test_another_source_tokenizer_cleaning_or_split_is_another_store(tmp_path: Path, change: str):
    path = write_rows(tmp_path / "a.jsonl")
    tokenizer = byte_level_bpe()
    first = build_text_stores(config(tmp_path, path), tokenizer, report=silent).train[0].path
    options: dict[str, object] = {}
    if change == "source":
        write_rows(path, [*TEXTS, "one more"])
    if change == "tokenizer":
        tokenizer = byte_level_bpe(vocab_size=310)
    if change == "cleaning":
        options["clean"] = CleanConfig(min_chars=1)
    if change == "split":
        options["eval_fraction"] = 0.3
    if change == "bad rows":
        options["on_bad_row"] = "skip"
    assert build_text_stores(config(tmp_path, path, **options), tokenizer, report=silent).train[0].path != first


def test_duplicates_are_dropped_across_sources_and_the_order_of_sources_counts(tmp_path: Path):
    one, two = write_rows(tmp_path / "a.jsonl", TEXTS[:100]), write_rows(tmp_path / "b.jsonl", TEXTS[50:])
    clean = CleanConfig(exact_dedup=True)
    stores = build_text_stores(config(tmp_path, one, two, clean=clean), byte_level_bpe(), report=silent)
    kept = [source.kept["train"].documents + source.kept["eval"].documents for source in stores.ledger.train]
    assert kept == [100, 100]
    alone = build_text_stores(config(tmp_path, two, clean=clean), byte_level_bpe(), report=silent)
    assert alone.train[0].path != stores.train[1].path


@pytest.mark.parametrize("stop_after", [1, 7, 25])
def test_a_build_that_was_cut_off_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch, stop_after: int):
    with_small_units(monkeypatch)
    path = write_rows(tmp_path / "a.jsonl")
    whole = build_text_stores(config(tmp_path / "whole", path), byte_level_bpe(), report=silent)

    encoded: list[int] = []
    encode = text_store.TextEncoder.encode

    def failing(self, texts):
        if len(encoded) == stop_after:
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return encode(self, texts)

    data = config(tmp_path / "cut", path)
    with monkeypatch.context() as patch:
        patch.setattr(text_store.TextEncoder, "encode", failing)
        with pytest.raises(KeyboardInterrupt):
            build_text_stores(data, byte_level_bpe(), report=silent)
    (folder,) = stores_in(cache_root(data.cache_dir))
    assert not store.is_store(folder)
    for name in ("train.tokens", "eval.bytes"):  # what a kill may leave of files that were being joined
        (folder / name).write_bytes(b"torn")
    again: list[str] = []
    resumed = build_text_stores(data, byte_level_bpe(), report=again.append)
    if stop_after > 1:
        assert any("made already" in message for message in again)
    assert files_of(resumed.train[0].path) == files_of(whole.train[0].path)
    assert resumed.ledger == whole.ledger


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:99])])
def test_a_shard_that_is_lost_or_damaged_is_named(tmp_path: Path, damage):
    layout = Layout(np.dtype(np.uint16))
    made = Documents(layout)
    made.add_tokens("train", np.array([5, 6], dtype=np.uint16))
    made.end_document("train", 2)
    for name in ("one", "two"):
        made.save(tmp_path / name, {})
    assert join(tmp_path, layout, [tmp_path / "one", tmp_path / "two"]).splits["train"]["tokens"] == 4
    assert np.fromfile(tmp_path / "train.offsets", np.int64).tolist() == [0, 2, 4]
    damage(tmp_path / "two")
    with pytest.raises(Damaged, match="two"):
        join(tmp_path, layout, [tmp_path / "one", tmp_path / "two"])


def test_a_second_process_waits_for_the_first_and_finds_its_store(tmp_path: Path):
    data = config(tmp_path, write_rows(tmp_path / "a.jsonl"))
    built = build_text_stores(data, byte_level_bpe(), report=silent)
    folder = built.train[0].path
    meta = (folder / store.META).read_bytes()
    (folder / store.META).unlink()  # as while the first process builds it

    waiting = threading.Event()
    found: list[Stores] = []
    messages: list[str] = []

    def report(message: str) -> None:
        messages.append(message)
        waiting.set()

    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(build_text_stores(data, byte_level_bpe(), report=report)))
        second.start()
        assert waiting.wait(60)
        (folder / store.META).write_bytes(meta)
    second.join(60)
    assert found[0].ledger == built.ledger
    assert ["waiting" in message for message in messages] == [True, False]  # then its account


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl")
    make = text_store._make

    def changing(*arguments):
        write_rows(path, [*TEXTS, "one more"])
        make(*arguments)

    monkeypatch.setattr(text_store, "_make", changing)
    with pytest.raises(ValueError, match="its files changed while they were read"):
        build_text_stores(config(tmp_path, path), byte_level_bpe(), report=silent)


def test_a_full_disk_is_one_clear_line_and_the_build_goes_on_later(tmp_path: Path, monkeypatch):
    with_small_units(monkeypatch)
    path = write_rows(tmp_path / "a.jsonl")
    data = config(tmp_path, path)
    save, saved = Documents.save, []

    def full(self, path, about):
        saved.append(path)
        if len(saved) > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, about)

    with monkeypatch.context() as patch:
        patch.setattr(Documents, "save", full)
        with pytest.raises(ValueError, match="the disk is full; free some space") as raised:
            build_text_stores(data, byte_level_bpe(), report=silent)
    assert "\n" not in str(raised.value)
    messages: list[str] = []
    build_text_stores(data, byte_level_bpe(), report=messages.append)
    assert any("made already" in message for message in messages)


def test_a_long_text_file_is_stored_as_if_encoded_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("llmtrain.data.sources.text.PIECE_CHARS", 200)
    monkeypatch.setattr("llmtrain.data.sources.items.LARGE_CHARS", 1000)
    monkeypatch.setattr("llmtrain.data.sources.text.CHUNK_BYTES", 97)
    with_small_units(monkeypatch)
    text = "".join(f"{text}\n" for text in TEXTS)
    (tmp_path / "a.txt").write_text(text)
    pieces: list[str] = []
    encode = text_store.TextEncoder.encode
    monkeypatch.setattr(
        text_store.TextEncoder, "encode", lambda self, texts: (pieces.extend(texts), encode(self, texts))[1]
    )
    stores = build_text_stores(config(tmp_path, tmp_path / "a.txt", eval_fraction=0), byte_level_bpe(), report=silent)
    assert len(pieces) > 20
    assert documents(stores.train[0]) == [[*byte_level_bpe()(text).input_ids, 1]]
    assert stores.train[0].document_bytes.tolist() == [len(text.encode())]


def test_a_long_text_of_a_tokenizer_that_cannot_be_cut_is_encoded_whole_and_that_is_reported(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("llmtrain.data.sources.text.PIECE_CHARS", 200)
    text = f"{WORDS}\n" * 40
    (tmp_path / "a.txt").write_text(text)
    messages: list[str] = []
    tokenizer = metaspace_bpe()
    data = config(tmp_path, tmp_path / "a.txt", eval_fraction=0)
    stores = build_text_stores(data, tokenizer, report=messages.append)
    assert documents(stores.train[0]) == [[*tokenizer(text).input_ids, tokenizer.eos_token_id]]
    assert any("tokenized whole" in message for message in messages)


def test_a_text_too_large_to_hold_falls_in_the_split_of_its_text(tmp_path: Path):
    text = "".join(TEXTS)
    (tmp_path / "a.txt").write_text(text)
    held = text_store.Document(text, "x", len(text.encode()))
    in_file = text_store.Document(FileText(tmp_path / "a.txt", 0, len(text)), "y", len(text.encode()))
    assert eval_share(in_file) == eval_share(held)


def test_held_out_sources_are_read_whole_and_nothing_is_held_out_of_training(tmp_path: Path):
    train, held_out = write_rows(tmp_path / "a.jsonl"), write_rows(tmp_path / "b.jsonl", ["x", "x", "y"])
    data = DataConfig(
        train=str(train), eval=str(held_out), cache_dir=str(tmp_path), clean=CleanConfig(exact_dedup=True)
    )
    lines: list[str] = []
    stores = build_text_stores(data, byte_level_bpe(), report=lines.append)
    assert (stores.train[0].num_documents, stores.eval[0].num_documents) == (200, 3)
    assert any(line.startswith(f"data.train[0] ({train}): 200 train documents") for line in lines)
    assert any(line.startswith(f"data.eval[0] ({held_out}): 3 eval documents") for line in lines)
    assert [source.path for source in stores.ledger.eval] == [str(held_out)]


def test_a_share_that_holds_out_nothing_says_which_would_before_anything_is_tokenized(tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", TEXTS[:3])
    with pytest.raises(ValueError, match=r"data\.eval_fraction=0\.01 holds out none of 3 documents") as raised:
        build_text_stores(config(tmp_path, path, eval_fraction=0.01), byte_level_bpe(), report=silent)
    assert not stores_in(tmp_path / "cache")
    enough = float(re.findall(r"set it above (0\.\d+)", str(raised.value))[0]) + 0.001
    stores = build_text_stores(config(tmp_path, path, eval_fraction=enough), byte_level_bpe(), report=silent)
    assert stores.eval[0].num_documents == 1


def test_held_out_documents_that_are_all_cleaned_away_are_an_error(tmp_path: Path):
    kept = [text for text in TEXTS if eval_share(text_store.Document(text, "x", 0)) >= 0.2]
    held_out = [f"{i}" for i in range(100)]  # some of these fall into the held-out share, and all are too short
    path = write_rows(tmp_path / "a.jsonl", kept + held_out)
    with pytest.raises(ValueError, match=r"holds out none of the .* documents that are left"):
        build_text_stores(config(tmp_path, path, clean=CleanConfig(min_chars=10)), byte_level_bpe(), report=silent)


def test_no_share_means_no_held_out_stores(tmp_path: Path):
    data = config(tmp_path, write_rows(tmp_path / "a.jsonl"), eval_fraction=0)
    assert build_text_stores(data, byte_level_bpe(), report=silent).eval == []


def test_cleaning_that_leaves_nothing_to_train_on_is_an_error(tmp_path: Path):
    data = config(tmp_path, write_rows(tmp_path / "a.jsonl"), clean=CleanConfig(min_chars=1000))
    with pytest.raises(ValueError, match=r"data\.train\[0\]=.*: no document is left to train on"):
        build_text_stores(data, byte_level_bpe(), report=silent)


def test_a_store_can_be_named_itself(tmp_path: Path):
    built = build_text_stores(config(tmp_path, write_rows(tmp_path / "a.jsonl")), byte_level_bpe(), report=silent)
    given = DataConfig(train=str(built.train[0].path))
    named = build_text_stores(given, byte_level_bpe(), report=silent)
    assert documents(named.train[0]) == documents(built.train[0])
    assert documents(named.eval[0]) == documents(built.eval[0])
    assert named.ledger == built.ledger


def test_a_named_store_of_another_tokenizer_is_an_error_that_names_both(tmp_path: Path):
    built = build_text_stores(config(tmp_path, write_rows(tmp_path / "a.jsonl")), byte_level_bpe(), report=silent)
    other = byte_level_bpe(vocab_size=310, name="other")
    with pytest.raises(ValueError, match=r"a store of the tokenizer tiny \(.*\), not of other \(.*\)") as raised:
        build_text_stores(DataConfig(train=str(built.train[0].path)), other, report=silent)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"slice": "0%:50%"}, {}, "slice would do nothing"),
        ({}, {"clean": CleanConfig(min_chars=2)}, "data.clean would do nothing"),
        ({}, {"eval_fraction": 0.5}, "built with data.eval_fraction=0.2, not 0.5"),
    ],
)
def test_an_option_that_would_do_nothing_to_a_named_store_is_an_error(tmp_path: Path, source, options, message: str):
    built = build_text_stores(config(tmp_path, write_rows(tmp_path / "a.jsonl")), byte_level_bpe(), report=silent)
    data = DataConfig(train=[{"path": str(built.train[0].path), **source}], **options)
    with pytest.raises(ValueError, match=message):
        build_text_stores(data, byte_level_bpe(), report=silent)


@pytest.mark.parametrize("name", ["train.tokens", "train.offsets", "eval.bytes"])
def test_a_torn_store_is_refused(tmp_path: Path, name: str):
    built = build_text_stores(config(tmp_path, write_rows(tmp_path / "a.jsonl")), byte_level_bpe(), report=silent)
    path = built.train[0].path / name
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(ValueError, match=f"{name}: .* bytes where store.json says"):
        build_text_stores(config(tmp_path, tmp_path / "a.jsonl"), byte_level_bpe(), report=silent)


def test_opening_a_store_reads_none_of_its_data(tmp_path: Path):
    num_tokens = 1_000_000_000  # a sparse file: 2 GB in size, nothing on the disk
    sizes = {"tokens": num_tokens, "documents": 0, "bytes": 0}
    meta = {
        "format": store.FORMAT,
        "name": "x",
        "kind": "text",
        "dtype": "uint16",
        "ledger": SourceLedger("x").to_dict(),
    }
    meta["splits"] = {"train": sizes, "eval": dict.fromkeys(sizes, 0)}
    (tmp_path / store.META).write_text(json.dumps(meta))
    for name, size in (("train.tokens", 2 * num_tokens), ("train.offsets", 8), ("train.bytes", 0)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    opened = open_store(tmp_path, "train")
    assert opened.num_tokens == num_tokens and isinstance(opened.tokens, np.memmap)


def test_a_store_of_another_format_is_refused(tmp_path: Path):
    (tmp_path / store.META).write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="a store of format 99, this version reads format 2"):
        open_store(tmp_path, "train")


def test_the_cache_is_where_the_configuration_or_the_environment_says(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "from_environment"))
    assert cache_root() == tmp_path / "from_environment"
    assert cache_root("/elsewhere") == Path("/elsewhere")
    monkeypatch.delenv("LLMTRAIN_CACHE")
    assert cache_root() == Path.home() / ".cache" / "llmtrain"
