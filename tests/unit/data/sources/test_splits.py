"""Splits and subsets of folders: as the `datasets` library finds them, honoured or refused, never passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset_builder

from llmtrain.config.data import Source
from llmtrain.data.formats.read import iter_rows
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.sources.files import Files, resolve
from llmtrain.data.sources.readers import Row

LAYOUTS: dict[str, list[str]] = {
    "shards in data": [
        "README.md",
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/test-00000-of-00001.jsonl",
        "extra.jsonl",
    ],
    "shards of other splits": ["data/train_sft-00000-of-00001.jsonl", "data/test_gen-00000-of-00001.jsonl"],
    "shards beside": ["train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"],
    "files": ["train.jsonl", "test.jsonl"],
    "files and one of no split": ["train.jsonl", "test.jsonl", "extra.jsonl"],
    "files of one split": ["train.jsonl", "extra.jsonl"],
    "val": ["train.jsonl", "val.jsonl"],
    "valid": ["rows_train.jsonl", "rows.valid.jsonl"],
    "dev": ["train_1.jsonl", "train_2.jsonl", "my-dev-2.jsonl"],
    "evaluation": ["training.jsonl", "evaluation.jsonl"],
    "part of a word": ["training.jsonl", "latest.jsonl", "contested.jsonl", "Test.jsonl"],
    "folders": ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl", "extra.jsonl"],
    "folders below": ["en/train/a.jsonl", "de/my_train 2/a.jsonl", "en/dev-1/x.jsonl"],
    "folders before files": ["train/test.jsonl", "train/a.jsonl", "dev.jsonl"],
    "subsets": ["en/train-00000-of-00001.jsonl", "de/train-00000-of-00001.jsonl", "de/test-00000-of-00001.jsonl"],
    "metadata": ["train.jsonl", "test.jsonl", "dataset_infos.json", "config.json", ".gitattributes"],
    "texts": ["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"],
    "flat": ["a.jsonl", "b.jsonl"],
}
CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: english/part-*
  - split: dev
    path: ["english/held.jsonl", "more/**"]
- config_name: de
  default: true
  data_files: "german/*.jsonl"
- config_name: fr
  data_dir: french
- config_name: it
  data_dir: italian
---
# A card
"""
CARD_FILES = ["english/part-1.jsonl", "english/part-2.jsonl", "english/held.jsonl", "more/x/y.jsonl", "german/a.jsonl"]
CARD_FILES += ["french/train.jsonl", "french/test.jsonl", "italian/a.jsonl"]


def write(root: Path, names: list[str], card: str = "# A card\n") -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = name if name.endswith(".txt") else json.dumps({"text": name}) + "\n"
        path.write_text({"README.md": card, "dataset_infos.json": "{}"}.get(name, text))
    return root


def read(root: Path, **source: Any) -> list[str]:
    """The texts, which are the files' names; what is not read is counted."""
    documents = list(iter_documents(Source(path=str(root), **source), "error", SourceLedger(path="x")))
    texts = [str(document.text) for document in documents]
    location = resolve(Source(path=str(root), **source))
    assert isinstance(location, Files)
    assert len(texts) + sum(location.not_read.values()) == sum(1 for path in root.rglob("*") if path.is_file())
    return texts


def reference(root: Path, subset: str | None = None) -> dict[str, list[str]]:
    """split -> names of its files, as `datasets` has them."""
    files = load_dataset_builder(str(root), subset).config.data_files
    return {
        str(split): sorted(Path(path).relative_to(root).as_posix() for path in paths) for split, paths in files.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_split_of_a_folder_is_what_datasets_finds(tmp_path: Path, layout: str):
    root = write(tmp_path, LAYOUTS[layout])
    expected = reference(root)
    for split, names in expected.items():
        assert sorted(read(root, split=split)) == names
    if "train" not in expected:
        with pytest.raises(ValueError, match=f"has no split train, only {next(iter(expected))}"):
            read(root)
    if layout != "flat":
        with pytest.raises(ValueError, match=r"has no split nosuch, only .*files\)"):
            read(root, split="nosuch")


@pytest.mark.parametrize("subset", ["en", "de", "fr", "it", None])
def test_a_card_names_subsets_and_their_splits_as_datasets_reads_it(tmp_path: Path, subset: str | None):
    root = write(tmp_path, ["README.md", *CARD_FILES], CARD)
    for split, names in reference(root, subset).items():
        assert sorted(read(root, subset=subset, split=split)) == names


def test_a_card_of_several_subsets_without_a_default_asks_which(tmp_path: Path):
    root = write(tmp_path, ["README.md", *CARD_FILES], CARD.replace("  default: true\n", ""))
    with pytest.raises(ValueError, match="names several subsets; set subset to one of en, de, fr, it"):
        read(root)


@pytest.mark.parametrize("entry", ["3", "{split: train}", "[[train]]", "[{path: x}]"])
def test_a_card_that_names_no_files_rightly_is_one_clear_line(tmp_path: Path, entry: str):
    card = f"---\nconfigs:\n- config_name: en\n  data_files: {entry}\n---\n"
    with pytest.raises(ValueError, match=r"README\.md: data_files of en must be patterns"):
        read(write(tmp_path, ["README.md", "a.jsonl"], card))


def test_a_subset_is_a_folder_where_no_card_names_it(tmp_path: Path):
    root = write(tmp_path, LAYOUTS["subsets"])
    assert read(root, subset="de") == ["de/train-00000-of-00001.jsonl"]
    assert read(root, subset="de", split="test") == ["de/test-00000-of-00001.jsonl"]
    with pytest.raises(ValueError, match="subset=fr does nothing here: it has no folder of that name"):
        read(root, subset="fr")


def test_all_is_every_file_whatever_its_split(tmp_path: Path):
    root = write(tmp_path, LAYOUTS["files and one of no split"])
    assert read(root, split="all") == ["extra.jsonl", "test.jsonl", "train.jsonl"]


def test_files_of_other_splits_are_counted_and_reported_by_name(tmp_path: Path):
    root = write(tmp_path, [*LAYOUTS["files and one of no split"], "val.jsonl", "dev.jsonl"])
    ledger = SourceLedger(path="x")
    assert len(list(iter_documents(Source(path=str(root)), "error", ledger))) == 1
    assert ledger.files_not_read == {"of split test": 1, "of split validation": 2, "of no split": 1}


@pytest.mark.parametrize("names", [["a test of time.txt", "b.txt"], ["on train.md", "x.md"], ["dev/a.txt", "b.txt"]])
def test_the_title_of_a_text_is_no_split(tmp_path: Path, names: list[str]):
    assert len(read(write(tmp_path, names))) == 2


@pytest.mark.parametrize("key", [{"split": "test"}, {"subset": "en"}, {"revision": "main"}, {"exclude": ["x"]}])
@pytest.mark.parametrize("what", ["a.jsonl", "*.jsonl", "flat"])
def test_a_selection_that_would_do_nothing_is_refused(tmp_path: Path, key: dict[str, Any], what: str):
    root = write(tmp_path, ["a.jsonl", "b.jsonl"])
    path = root if what == "flat" else root / what
    words = "matches none of its files" if "exclude" in key and what != "a.jsonl" else "does nothing here"
    with pytest.raises(ValueError, match=words) as raised:
        list(iter_documents(Source(path=str(path), **key), "error", SourceLedger(path="x")))
    assert next(iter(key)) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["train[:10%]", "train+test", "train[5:]", ""])
def test_an_expression_of_splits_points_to_slice(tmp_path: Path, split: str):
    root = write(tmp_path, LAYOUTS["files"])
    with pytest.raises(ValueError, match=r"is not the name of a split; .*slice=0%:10%"):
        read(root, split=split)


def test_excluded_files_are_left_out_and_counted(tmp_path: Path):
    root = write(tmp_path, ["a.jsonl", "b.jsonl", "x/c.jsonl", "x/d.jsonl"])
    assert read(root, exclude=["b.jsonl", "x/*"]) == ["a.jsonl"]
    location = resolve(Source(path=f"{root}/**/*.jsonl", exclude=["*d.jsonl"]))
    assert isinstance(location, Files) and location.not_read == {"excluded": 1}


def test_a_saved_dataset_dict_is_read_by_its_splits(tmp_path: Path):
    splits = {name: Dataset.from_list([{"text": f"{name} {i}"} for i in range(3)]) for name in ("train", "test")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == ["train 0", "train 1", "train 2"]
    assert texts(tmp_path / "saved", split="test") == ["test 0", "test 1", "test 2"]
    with pytest.raises(ValueError, match=r"has no split validation, only train \(1 files\), test \(1 files\)"):
        texts(tmp_path / "saved", split="validation")


@pytest.mark.parametrize("text", ['{"spl', "[]", "{}", '{"splits": 3}'])
def test_a_damaged_dataset_dict_is_one_clear_line(tmp_path: Path, text: str):
    write(tmp_path, ["train/a.jsonl"])
    (tmp_path / "dataset_dict.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset_dict\.json: (names no splits|cannot be read)"):
        texts(tmp_path)


def test_a_saved_dataset_is_read_without_its_metadata_and_caches(tmp_path: Path):
    Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(tmp_path / "saved")
    (data,) = (tmp_path / "saved").glob("data-*.arrow")
    (tmp_path / "saved" / "cache-0123.arrow").write_bytes(data.read_bytes())  # as `map` leaves beside the data
    assert texts(tmp_path / "saved") == ["a", "b"]
    with pytest.raises(ValueError, match="split=test does nothing here"):
        texts(tmp_path / "saved", split="test")


def texts(root: Path, **source: Any) -> list[str]:
    return [str(each.text) for each in iter_documents(Source(path=str(root), **source), "error", SourceLedger("x"))]


METADATA = {
    "dataset_infos.json": '{"default": {"description": ""}}',
    "dataset_info.json": "{}",
    "config.json": '{"model_type": "x"}',
    "model.safetensors.index.json": '{"weight_map": {}}',
    "README.md": "---\nlicense: mit\n---\n# A card",
    "LICENSE.txt": "MIT",
    "LICENSE": "MIT",
    ".gitattributes": "*.parquet filter=lfs",
}


def texts_read(root: Path, ledger: SourceLedger) -> list[str]:
    return [str(each.text) for each in iter_documents(Source(path=str(root)), "error", ledger)]


def rows_read(root: Path, ledger: SourceLedger) -> list[str]:
    return [
        row.fields["text"]
        for row in iter_rows(Source(path=str(root)), lambda row: True, ledger)
        if isinstance(row, Row)
    ]


@pytest.mark.parametrize("read", [texts_read, rows_read])
def test_cards_and_metadata_beside_rows_are_left_out_and_counted_by_name(tmp_path: Path, read: Any):
    Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "rows.parquet")
    for name, text in METADATA.items():
        (tmp_path / name).write_text(text)
    ledger = SourceLedger(path="x")
    assert read(tmp_path, ledger) == ["a"]
    assert ledger.files == 1
    assert ledger.files_not_read == {name: 1 for name in METADATA if name != ".gitattributes"} | {"hidden": 1}


def test_a_folder_of_texts_has_its_readme_read(tmp_path: Path):
    for name in ("README.md", "LICENSE.txt", "chapter.rst"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["LICENSE.txt", "README.md", "chapter.rst"]


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ("{data_files: a.jsonl}", "configs must be a list"),
        ("[{config_name: x, data_files: a.jsonl]", "its configs cannot be read"),
        ("[{config_name: x, data_files: 2020-13-45}]", "its configs cannot be read"),
        ("[{data_files: a.jsonl}]", "each with a config_name"),
        ("[{config_name: default}, {config_name: b, default: true}]", "several default subsets"),
        ("[{config_name: c, data_files: [a.jsonl, gone.jsonl]}]", "names gone.jsonl of split train"),
    ],
)
def test_a_card_that_is_ambiguous_or_names_what_is_not_there_is_refused(tmp_path: Path, configs: str, message: str):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    with pytest.raises(ValueError, match=message):
        resolve(Source(path=str(tmp_path)))
