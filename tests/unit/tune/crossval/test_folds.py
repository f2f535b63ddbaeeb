"""Folds of groups: no group in two, every row in one, balanced, the same for the same seed."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.load import validate
from llmtrain.config.recipes import PreferenceStageConfig, RecipeConfig, RewardStageConfig, SftConfig
from llmtrain.tune.crossval.folds import assign
from llmtrain.tune.crossval.plan import Plan, make_plan
from llmtrain.tune.crossval.rows import fold_file, read_records

SCHEMAS: dict[str, tuple[type[RecipeConfig], dict[str, Any]]] = {
    "chat": (SftConfig, {}),
    "pairs": (RewardStageConfig, {"reward": {}}),
    "labelled": (PreferenceStageConfig, {"preference": {"loss": "kto"}}),
}


def config_of(kind: str, *sources: Path | dict[str, Any], **data: Any) -> RecipeConfig:
    schema, sections = SCHEMAS[kind]
    train = [source if isinstance(source, dict) else str(source) for source in sources]
    tree = {
        "run": {"dir": "run", "seed": data.pop("seed", 0)},
        "model": {"path": "model"},
        "data": {"train": train, "cache_dir": str(Path(str(sources[0]))) if not sources else None, **data},
        "train": {"steps": 1},
    }
    return validate(schema, tree | sections)


def row_of(kind: str, question: str, answer: str, **rest: Any) -> dict[str, Any]:
    match kind:
        case "chat":
            return {"prompt": question, "completion": answer, **rest}
        case "pairs":
            return {"prompt": question, "chosen": answer, "rejected": f"not {answer}", **rest}
    return {"prompt": question, "completion": answer, "label": answer > "m", **rest}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def folds_of(plan: Plan) -> dict[int, list[dict[str, Any]]]:
    """Fold -> the rows of its files."""
    return {
        fold: [
            json.loads(line)
            for source in range(len(plan.config.data.train))
            if (path := fold_file(plan.data, source, fold)).is_file()
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for fold in range(1, plan.num_folds + 1)
    }


def test_groups_are_whole_and_folds_balanced_whatever_their_sizes() -> None:
    drawn = random.Random(0)
    for _ in range(300):
        sizes = {f"group {i}": int(drawn.paretovariate(0.8)) for i in range(drawn.randint(2, 60))}
        num_folds, seed = drawn.randint(2, len(sizes)), drawn.randrange(1000)
        folds = assign(sizes, num_folds, seed)
        rows, groups = Counter[int](), Counter[int]()
        for group, size in sizes.items():
            rows[folds[group]] += size
            groups[folds[group]] += 1
        assert folds.keys() == sizes.keys()
        assert set(groups) == set(range(num_folds))
        assert max(rows.values()) - min(rows.values()) <= max(sizes.values())
        shuffled = dict(drawn.sample(sorted(sizes.items()), len(sizes)))
        assert assign(shuffled, num_folds, seed) == folds


def test_another_seed_makes_other_folds() -> None:
    sizes = {f"group {i}": 1 for i in range(50)}
    assert assign(sizes, 5, 0) != assign(sizes, 5, 1)


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("by", [None, "author", "meta.id"])
def test_nothing_leaks_and_every_row_is_held_out_once(tmp_path: Path, kind: str, by: str | None) -> None:
    """Random groups, keys, duplicates, sources and K: the same key, or content, is never on both sides."""
    drawn = random.Random(f"{kind} {by}")
    for trial in range(4):
        rows = []
        for _ in range(drawn.randint(20, 60)):
            question, answer = f"question {drawn.randint(0, 30)}", drawn.choice("abyz")
            author = drawn.choice(["Ann", "Bé", "ann", 3, None if by is None else "x"])
            meta = {"id": drawn.randint(0, 6), "kept": [1.5, {"a": None}]}
            rows.append(row_of(kind, question, answer, author=author, meta=meta))
        cut = drawn.randint(1, len(rows) - 1)
        sources = [write(tmp_path / f"{trial}-{i}.jsonl", part) for i, part in enumerate((rows[:cut], rows[cut:]))]
        plan = make_plan(config_of(kind, *sources, seed=trial), drawn.randint(2, 4), by, tmp_path / f"{trial}", print)
        folds = folds_of(plan)
        assert sorted(json.dumps(row) for fold in folds.values() for row in fold) == sorted(map(json.dumps, rows))
        for fold, held_out in folds.items():
            trained = [row for other, each in folds.items() if other != fold for row in each]
            keys = [{_key(kind, row, by) for row in side} for side in (held_out, trained)]
            assert keys[0].isdisjoint(keys[1])
        records = list(read_records(plan.data))
        assert [record["row"] for record in records] == list(range(len(rows)))
        assert [record["where"] for record in records] == [
            f"{source}:{line + 1}"
            for source, size in zip(sources, (cut, len(rows) - cut), strict=True)
            for line in range(size)
        ]


def _key(kind: str, row: dict[str, Any], by: str | None) -> Any:
    if by == "author":
        return row["author"]
    if by is not None:
        return row["meta"]["id"]
    return (row["prompt"], row["completion"]) if kind == "chat" else row["prompt"]


def test_what_a_fold_trains_on_is_all_but_what_it_holds_out(tmp_path: Path) -> None:
    """A source that has rows in one fold alone is left out where it has none; weights and fields are kept."""
    rows = [row_of("chat", f"q{i}", "a") for i in range(12)]
    many = write(tmp_path / "many.jsonl", rows)
    one = write(tmp_path / "one.jsonl", [{"ask": "only", "say": "one"}])
    fields = {"prompt": "ask", "completion": "say"}
    config = config_of(
        "chat", {"path": str(many), "weight": 3}, {"path": str(one), "weight": 1, "fields": fields}, eval_fraction=0.5
    )
    plan = make_plan(config, 3, None, tmp_path / "folds", print)
    (only,) = (record["fold"] for record in read_records(plan.data) if record["source"] == 1)
    for fold in (1, 2, 3):
        made = plan.fold_config(fold)
        assert (made.run.dir, made.data.eval_fraction) == (str(tmp_path / "folds" / f"fold-{fold}"), 0.01)
        assert [source.weight for source in made.data.train] == ([3] if fold == only else [3, 1])
        assert [source.fields for source in made.data.eval or ()] == ([{}, fields] if fold == only else [{}])
        assert made.data.train[0].exclude == [f"fold-{fold}.jsonl"]


def test_rows_that_no_run_would_use_are_named_with_the_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [row_of("labelled", f"q{i}", "z") for i in range(4)]
    source = write(tmp_path / "rows.jsonl", [*rows, {"prompt": "q", "completion": "a"}])
    with source.open("a") as file:
        file.write("{torn\n")
    plan = make_plan(config_of("labelled", source, on_bad_row="skip"), 2, None, tmp_path / "folds", print)
    assert (plan.num_used, plan.num_rows, plan.dropped) == (4, 6, {"no label": 1, "malformed JSON": 1})
    dropped = {record["where"]: record["dropped"] for record in read_records(plan.data) if "dropped" in record}
    assert dropped == {f"{source}:5": "no label", f"{source}:6": "malformed JSON"}


def test_a_plan_that_is_there_is_found_again(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row_of("chat", f"q{i}", "a") for i in range(9)])
    first = make_plan(config_of("chat", source), 3, None, tmp_path / "folds", print)
    found = folds_of(first)
    (tmp_path / "killed").mkdir()  # before its end
    first.data.rename(tmp_path / "killed" / "data.partial")
    again = make_plan(config_of("chat", source), 3, None, tmp_path / "killed", print)
    assert folds_of(again) == found
    moved = tmp_path / "moved.jsonl"
    source.rename(moved)
    assert make_plan(config_of("chat", moved), 3, None, tmp_path / "killed", print).fold_rows == first.fold_rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 4}, r"folds is 3 there and 4 here"),
        ({"by": "author"}, r"by is None there and 'author' here"),
        ({"seed": 1}, r"run\.seed is 0 there and 1 here"),
        ({"max_seq_len": 512}, r"data\.max_seq_len is 1024 there and 512 here"),
        ({"rows": 8}, r"the rows of data\.train are others"),
    ],
)
def test_a_folder_of_another_cross_validation_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source, folder = tmp_path / "rows.jsonl", tmp_path / "folds"
    rows = [row_of("chat", f"q{i}", "a", author=i) for i in range(9)]
    make_plan(config_of("chat", write(source, rows)), 3, None, folder, print)
    write(source, rows[: change.pop("rows", 9)])
    folds, by = change.pop("folds", 3), change.pop("by", None)
    with pytest.raises(ValueError, match=rf"\A--dir {folder} holds another cross-validation \({message}\): choose"):
        make_plan(config_of("chat", source, **change), folds, by, folder, print)


@pytest.mark.parametrize(
    ("folds", "by", "message"),
    [
        (1, None, r"--folds 1: give at least 2\Z"),
        (0, None, r"--folds 0: give at least 2\Z"),
        (9, None, r"--folds 9: the 10 rows have 8 different conversations or questions: give at most as many folds"),
        (4, "author", r"--folds 4: the 10 rows have 3 values of author: give at most as many folds"),
        (2, "writer", r"--by writer: 10 of 10 rows have no writer, the first is .*rows\.jsonl:1 \(fields prompt, "),
        (2, "topic", r"--by topic: 2 of 10 rows have no topic, the first is .*rows\.jsonl:4 "),
    ],
)
def test_folds_that_cannot_be_made_are_refused(tmp_path: Path, folds: int, by: str | None, message: str) -> None:
    rows = [row_of("chat", f"q{i % 8}", "a", author="ABC"[i % 3], topic=i) for i in range(10)]
    rows[3]["topic"] = None
    del rows[5]["topic"]
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=rf"\A{message}"):
        make_plan(config_of("chat", source), folds, by, tmp_path / "folds", print)
    assert not (tmp_path / "folds").exists()


def test_a_bad_row_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row_of("chat", "q", "a"), {"prompt": "q"}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'completion' is missing.*set data\.on_bad_row=skip"):
        make_plan(config_of("chat", source), 2, None, tmp_path / "folds", print)
    (tmp_path / "own" / "data").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is not empty and holds no cross-validation"):
        make_plan(config_of("chat", source), 2, None, tmp_path / "own", print)
    assert (tmp_path / "own" / "data").is_dir()


def test_contents_that_several_keys_share_are_counted(tmp_path: Path) -> None:
    rows = [row_of("chat", f"q{i % 4}", "a", author=i) for i in range(8)]
    plan = make_plan(config_of("chat", write(tmp_path / "rows.jsonl", rows)), 2, "author", tmp_path / "folds", print)
    assert (plan.num_groups, plan.split_contents) == (8, 4)
