"""Evaluation text in the data is found with both places; what is shared by chance or by wording is not."""

from __future__ import annotations

import json
import random
from pathlib import Path

from planted_texts import item, sentence

from llmtrain.config.data import Source
from llmtrain.data.quality.contamination import common_run, contamination

NUM_EVALUATED, NUM_TEXTS, NUM_PLANTED = 60, 200, 40
WORDING = "Choose the best of the four answers below and explain in one sentence why it is right."


def evaluation(path: Path, rows: list[dict[str, str]]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


def test_planted_evaluation_text_is_found_and_nothing_else(tmp_path: Path) -> None:
    draw = random.Random(0)
    questions = [sentence(draw, 40) for _ in range(NUM_EVALUATED)]
    source = evaluation(tmp_path / "eval.jsonl", [{"task": WORDING, "question": text} for text in questions])
    texts = [sentence(draw, 120) for _ in range(NUM_TEXTS)]
    for number in range(NUM_PLANTED):  # 13 to 30 words, in other punctuation
        length = draw.randrange(13, 31)
        run = " ".join(questions[number].split(" ")[4 : 4 + length]).replace(".", ";").upper()
        texts[number] = f"{texts[number][:200]} {run} {texts[number][200:]}"
    texts[-1] += f" {WORDING}"
    texts[-2] += " " + " ".join(questions[-1].split(" ")[:12])  # a word too few
    found = contamination([item(text, number) for number, text in enumerate(texts)], [source], 1)
    assert (found.num_hit, found.num_rows, found.num_items) == ([NUM_PLANTED], [NUM_EVALUATED], NUM_PLANTED)
    for match in found.matches:
        shared = match.item.text[match.in_item.start : match.in_item.end]
        theirs = match.evaluated.text[match.in_evaluated.start : match.in_evaluated.end]
        assert shared.lower().replace(";", ".") == theirs.lower() or len(theirs.split()) == match.num_words
        assert len(shared.split()) == match.num_words >= 13
        assert match.evaluated.row == int(match.item.where.rpartition(":")[2])
    lengths = [match.num_words for match in found.matches]
    assert lengths == sorted(lengths, reverse=True)


def test_a_short_text_is_found_as_a_whole_and_a_shorter_one_never(tmp_path: Path) -> None:
    draw = random.Random(1)
    short, shorter = sentence(draw, 8), sentence(draw, 7)
    source = evaluation(tmp_path / "eval.jsonl", [{"question": short}, {"question": shorter}])
    found = contamination(
        [item(f"{sentence(draw, 20)} {short}", 0), item(f"{shorter} {sentence(draw, 20)}", 1)], [source], 1
    )
    assert (found.num_rows, found.num_looked_for) == ([2], [1])
    assert found.num_hit == [1] and found.matches[0].num_words == 8 and found.matches[0].share == 1.0


def test_letters_that_grow_in_lower_case_leave_the_places_of_a_match_right(tmp_path: Path) -> None:
    short = "İzmir ve Bursa arasinda kac saatlik yol"  # seven words, eight as they are hashed
    source = evaluation(tmp_path / "eval.jsonl", [{"question": short}])
    text = f"İİ İstanbul. {short}! Son."
    (match,) = contamination([item(text, 0)], [source], 1).matches
    assert text[slice(*match.in_item)] == short == match.evaluated.text[slice(*match.in_evaluated)]


def test_a_run_is_found_in_both_texts() -> None:
    spans = common_run("x one two, three y", "Z ONE TWO THREE", 3)
    assert spans is not None
    assert [("x one two, three y"[slice(*spans[0])]), "Z ONE TWO THREE"[slice(*spans[1])]] == [
        "one two, three",
        "ONE TWO THREE",
    ]
    assert common_run("a b", "c d", 1) is None
