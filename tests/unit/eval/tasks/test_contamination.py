"""Items that are in the training data are found, with the text that matches beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.data.sources.ngrams import word_hashes
from llmtrain.eval.tasks import contamination
from llmtrain.eval.tasks.contamination import NGRAM_WORDS, find_matches, with_matches
from llmtrain.eval.tasks.results import ACC, ItemResult, TaskResult
from llmtrain.tasks.load import TASKS
from llmtrain.tasks.rows import TaskRows, read_task

LONG = "Anna has forty apples and gives nine of them to each of her four old friends"
SHORT = "Which river is the longest one in Europe"  # eight words
OTHER = "Bob walks to the market every second day and buys three loaves of bread there"
INSTRUCTION = "Think about the following question and answer it with one word and nothing else please"


def rows(path: Path, questions: list[str]) -> TaskRows:
    lines = [json.dumps({"prompt": f"{question}?", "answer": "x"}) for question in questions]
    path.write_text("\n".join(lines) + "\n")
    return read_task(TASKS["answers"], Source(path=str(path)), limit=None)


def found(tmp_path: Path, questions: list[str], train: list[dict[str, Any]] | str) -> dict[str, str]:
    """Question -> text that matches."""
    path = tmp_path / ("train.txt" if isinstance(train, str) else "train.jsonl")
    path.write_text(train if isinstance(train, str) else "".join(f"{json.dumps(row)}\n" for row in train))
    task_rows = rows(tmp_path / "items.jsonl", questions)
    names = {row.key: str(row.fields["prompt"]) for row in task_rows.rows}
    matches = find_matches([task_rows], [Source(path=str(path))])
    return {names[key]: match.text for (_, key), match in matches.found.items()}


@pytest.mark.parametrize(
    "train",
    [
        f"Before. {LONG.upper()}, and after.",
        [{"question": "other"}, {"messages": [{"role": "user", "content": f"Hm,\n{LONG}"}]}],
        [{"text": " ".join(LONG.split()[:NGRAM_WORDS])}],
    ],
)
def test_a_text_in_common_is_found_in_any_format(train: Any, tmp_path: Path) -> None:
    matches = found(tmp_path, [LONG, OTHER], train)
    assert list(matches) == [f"{LONG}?"]
    assert matches[f"{LONG}?"].lower() == " ".join(LONG.lower().split()[:NGRAM_WORDS])


def test_the_text_that_matches_is_shown_from_its_first_word_after_letters_that_grow_in_lower_case(
    tmp_path: Path,
) -> None:
    matches = found(tmp_path, [LONG], f"İİİ, İzmir ve İstanbul. {LONG}, and after.")
    assert matches == {f"{LONG}?": " ".join(LONG.split()[:NGRAM_WORDS])}


def test_a_short_text_is_compared_as_a_whole(tmp_path: Path) -> None:
    assert list(found(tmp_path, [SHORT, OTHER], f"So: {SHORT}? The Volga.")) == [f"{SHORT}?"]
    assert not found(tmp_path, [SHORT], "Which river is the longest one in Asia")


def test_the_training_text_is_cut_into_words_once_whatever_the_lengths_of_the_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(text: str, words: Any) -> Any:
        read.append(text)
        return word_hashes(text, words)

    monkeypatch.setattr(contamination, "word_hashes", counted)
    monkeypatch.setattr(contamination, "PIECE_CHARS", 40)  # n-grams of two pieces too
    questions = [LONG, SHORT, " ".join(OTHER.split()[:10]), " ".join(LONG.split()[4:16])]
    text = f"{OTHER}. {SHORT}! {LONG}, as he said"
    assert found(tmp_path, questions, text).keys() == {f"{question}?" for question in questions}
    assert "".join(read) == text


def test_twelve_words_are_too_few(tmp_path: Path) -> None:
    assert not found(tmp_path, [LONG], " ".join(LONG.split()[: NGRAM_WORDS - 1]))


def test_an_instruction_that_all_items_share_is_no_contamination(tmp_path: Path) -> None:
    questions = [f"{INSTRUCTION} {number} {LONG if number == 3 else ''}" for number in range(30)]
    assert not found(tmp_path, questions, INSTRUCTION)
    assert len(found(tmp_path, questions, LONG)) == 1


def test_the_text_is_beside_the_item(tmp_path: Path) -> None:
    task_rows = rows(tmp_path / "items.jsonl", [LONG, OTHER])
    (tmp_path / "train.txt").write_text(f"x {LONG} y")
    matches = find_matches([task_rows], [Source(path=str(tmp_path / "train.txt"))])
    items = [ItemResult("answers", row.key, row.where, {"acc": 1.0}, {"response": "r"}) for row in task_rows.rows]
    result = with_matches(TaskResult("answers", [ACC], items, {}), matches)
    assert result.items[0].details["trained_on"]["text"].startswith("Anna has forty")
    assert result.items[0].details["response"] == "r" and "trained_on" not in result.items[1].details
    assert "1 of 2 items share 13 words" in result.notes[0] and "train.txt" in result.notes[0]


def test_items_that_are_too_short_to_be_looked_for_are_not_counted_as_clean(tmp_path: Path) -> None:
    task_rows = rows(tmp_path / "items.jsonl", [LONG, OTHER, "Is it so"])
    (tmp_path / "train.txt").write_text("Is it so? x")
    matches = find_matches([task_rows], [Source(path=str(tmp_path / "train.txt"))])
    items = [ItemResult("answers", row.key, row.where, {"acc": 1.0}) for row in task_rows.rows]
    (note,) = with_matches(TaskResult("answers", [ACC], items, {}), matches).notes
    assert note.startswith("0 of 2 items share 13 words") and "1 others have no text of 8 words" in note
