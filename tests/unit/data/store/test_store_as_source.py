"""A store that a configuration names: used by the run that it is for, refused by name by every other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_kinds import KINDS, STORES, write_kinds

from llmtrain.config.data import Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents, iter_texts


def silent(line: str) -> None:
    pass


def store_of(kind: str, folder: Path) -> Path:
    path = write_kinds(folder / "rows.jsonl", [f"{number} words" for number in range(40)])
    data = {"train": str(path), "eval_fraction": 0, "cache_dir": str(folder / "cache")}
    return STORES[kind](data, silent).train[0].path


@pytest.mark.parametrize("use", KINDS)
@pytest.mark.parametrize("kind", STORES)
def test_a_store_is_used_by_its_own_kind_of_run_or_refused_by_name(tmp_path: Path, kind: str, use: str):
    folder = store_of(kind, tmp_path)
    data = {"train": str(folder), "eval_fraction": 0, "cache_dir": str(tmp_path / "other")}
    if (kind, use) == ("text", "text"):
        assert KINDS[use](data, silent).train[0].path == folder
        return
    refusal = r"a store of .*, not of text|a token store holds no text and no rows"
    with pytest.raises(ValueError, match=refusal) as raised:
        KINDS[use](data, silent)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", STORES)
def test_a_store_is_not_read_as_text_nor_through_the_folder_it_is_in(tmp_path: Path, kind: str):
    folder = store_of(kind, tmp_path)
    for path in (folder, folder.parent, folder / ".." / "*" / "*.json"):
        with pytest.raises(ValueError, match="a token store holds no text and no rows"):
            list(iter_documents(Source(path=str(path)), "error", SourceLedger(path="x")))
    with pytest.raises(ValueError, match="a token store holds no text and no rows"):
        list(iter_texts(str(folder)))


def damages() -> dict[str, Any]:
    return {
        "torn": lambda meta: json.dumps(meta)[:-30],
        "empty": lambda meta: "",
        "a list": lambda meta: "[]",
        "no ledger": lambda meta: json.dumps(meta | {"ledger": {}}),
        "ledger of another shape": lambda meta: json.dumps(meta | {"ledger": meta["ledger"] | {"read": 3}}),
        "no sizes": lambda meta: json.dumps(meta | {"splits": {"train": {}}}),
        "sizes that are no numbers": lambda meta: json.dumps(meta | {"splits": {"train": None, "eval": None}}),
        "no type of numbers": lambda meta: json.dumps(meta | {"dtype": "nonsense"}),
        "no kind": lambda meta: json.dumps({name: value for name, value in meta.items() if name != "kind"}),
    }


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("named", [False, True])
def test_a_damaged_description_is_one_clear_line(tmp_path: Path, damage: str, named: bool):
    folder = store_of("text", tmp_path)
    description = folder / "store.json"
    description.write_text(damages()[damage](json.loads(description.read_text())))
    train = folder if named else tmp_path / "rows.jsonl"
    data = {"train": str(train), "eval_fraction": 0, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"store\.json: not the description of a token store; delete the folder"):
        STORES["text"](data, silent)


@pytest.mark.parametrize("kind", STORES)
def test_a_store_of_another_format_is_refused_by_name(tmp_path: Path, kind: str):
    folder = store_of(kind, tmp_path)
    meta = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(meta | {"format": 1}))
    with pytest.raises(ValueError, match="a store of format 1, this version reads format 2; rebuild it"):
        STORES["text"]({"train": str(folder), "eval_fraction": 0}, silent)


def test_a_store_is_not_held_out_from_training_on_what_it_was_made_of(tmp_path: Path):
    texts = [f"{number} words" for number in range(40)]
    path = str(write_kinds(tmp_path / "rows.jsonl", texts))
    other = str(write_kinds(tmp_path / "other.jsonl", [f"other {text}" for text in texts]))

    def stores(train: Any, held_out: Any = None, **data: Any) -> Any:
        sources = {"train": [train], "eval": held_out and [held_out], "cache_dir": str(tmp_path / "cache")}
        return KINDS["text"](sources | data, silent)

    whole, split, wider, front = (
        str(stores(source, eval_fraction=fraction).train[0].path)
        for source, fraction in ((path, 0), (path, 0.2), (path, 0.4), ({"path": path, "slice": "0%:50%"}, 0))
    )
    overlapping = [(whole, whole), (path, whole), (whole, path), (path, split), (split, path), (split, wider)]
    for train, held_out in [*overlapping, (front, {"path": path, "slice": "40%:100%"})]:
        with pytest.raises(ValueError, match="so that it would be trained on and evaluated") as raised:
            stores(train, held_out)
        assert "\n" not in str(raised.value)
    for train, held_out in [(split, split), (other, split), (front, {"path": path, "slice": "50%:100%"})]:
        assert stores(train, held_out).eval[0].num_documents
