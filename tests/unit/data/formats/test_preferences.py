"""Preferences: every format becomes the same pairs, and every pair is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.data.formats.preference_formats import BEST_FIRST
from llmtrain.data.formats.preferences import AGAINST_SCORES, EQUAL, EVEN_SCORES, Preference, iter_preferences
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.split import eval_share

USER = {"role": "user", "content": "2 + 2?"}
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("4", "5"))
HUMAN = {"from": "human", "value": "2 + 2?"}
ASKED = "\n\nHuman: 2 + 2?\n\nAssistant:"


def node(role: str, text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **more}


FORMATS = [
    ("preference", {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}),
    ("preference", {"question": "2 + 2?", "chosen": "4", "rejected": "5"}),
    ("preference", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    ("preference", {"prompt": "2 + 2?", "chosen": [GOOD], "rejected": [BAD]}),
    ("preference", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    ("preference", {"prompt": "2 +  2?", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    ("preference", {"messages": [USER], "chosen": GOOD, "rejected": BAD}),
    ("preference", {"instruction": "2 + 2?", "input": "", "output": "4", "chosen": "4", "rejected": "5"}),
    (
        "preference",
        {"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}},
    ),
    ("preference", {"prompt": ASKED, "chosen": "4", "rejected": "5"}),
    ("HH-RLHF dialogue", {"chosen": ASKED + " 4", "rejected": ASKED + " 5"}),
    ("ranked list", {"prompt": "2 + 2?", "responses": ["5", "4"], "ranks": [2, 1]}),
    ("ranked list", {"prompt": "2 + 2?", "answers": ["4", "5"]}),
    ("ranked list", {"prompt": [USER], "responses": [{"text": "5", "rank": 1}, {"text": "4", "rank": 0}]}),
    ("ranked list", {"messages": [USER], "completions": [BAD, GOOD], "ranks": [1, 0]}),
    (
        "OpenAssistant tree",
        {"prompt": node("prompter", "2 + 2?", node("assistant", "5", rank=1), node("assistant", "4", rank=0))},
    ),
    (
        "OpenAssistant tree",
        node("prompter", "2 + 2?", node("assistant", "5", rank=1), node("assistant", "4", rank=0)),
    ),
]


def read(
    folder: Path, *rows: Any, on_bad_row: str = "error", said: list[str] | None = None, **fields: str
) -> tuple[list[Preference], SourceLedger]:
    """The pairs of a file of rows and its account, which is checked."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger = SourceLedger(path=str(path))
    say = [].append if said is None else said.append
    found = list(iter_preferences(Source(path=str(path), fields=fields), on_bad_row, ledger, say))
    for preference in found:
        ledger.kept["train"].add(preference.num_bytes)
    ledger.check()
    return found, ledger


def fault(folder: Path, *rows: Any, **fields: str) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as raised:
        read(folder, *rows, **fields)
    return str(raised.value).replace(f"{folder}/", "")


def answers(found: list[Preference]) -> list[tuple[str, str]]:
    return [(pair.chosen.messages[-1]["content"], pair.rejected.messages[-1]["content"]) for pair in found]


@pytest.mark.parametrize(("name", "row"), FORMATS, ids=[f"{name}: {' '.join(row)}" for name, row in FORMATS])
def test_every_format_gives_the_same_pair(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    (pair,), ledger = read(tmp_path, row)
    assert (list(pair.chosen.messages), list(pair.rejected.messages)) == ([USER, GOOD], [USER, BAD])
    assert (pair.chosen.num_prompt, pair.rejected.num_prompt, pair.weight) == (1, 1, 1.0)
    assert (pair.group, ledger.row_format) == ("2 + 2?", name)


def test_fields_of_other_names_are_mapped(tmp_path: Path) -> None:
    row = {"q": "2 + 2?", "better": "4", "worse": "5"}
    assert answers(read(tmp_path, row, prompt="q", chosen="better", rejected="worse")[0]) == [("4", "5")]
    row = {"q": "2 + 2?", "prompt": "x", "options": ["5", "4"], "order": [1, 0]}
    assert answers(read(tmp_path, row, prompt="q", responses="options", ranks="order")[0]) == [("4", "5")]


def test_a_mapped_prompt_decides_between_several(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "question": "x", "chosen": "4", "rejected": "5"}
    assert "prompt and question could each be the prompt" in fault(tmp_path, row)
    assert read(tmp_path, row, prompt="prompt")[0][0].group == "2 + 2?"


def test_a_ranking_gives_all_its_pairs_which_count_as_one(tmp_path: Path) -> None:
    found, _ = read(tmp_path, {"prompt": "q", "responses": ["c", "a", "b"], "ranks": [3, 1, 2]})
    assert sorted(answers(found)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.weight for pair in found] == [1 / 3] * 3


def test_tied_answers_are_not_compared(tmp_path: Path) -> None:
    found, _ = read(tmp_path, {"prompt": "q", "responses": ["c", "a", "b"], "scores": [1, 4, 1]})
    assert sorted(answers(found)) == [("a", "b"), ("a", "c")]
    assert [pair.weight for pair in found] == [1 / 2] * 2


def test_a_ranking_of_equals_is_dropped_and_counted(tmp_path: Path) -> None:
    tied, good = ({"prompt": "q", "responses": ["a", "b"], "ranks": ranks} for ranks in ([1, 1], [1, 2]))
    found, ledger = read(tmp_path, good, tied)
    assert len(found) == 1
    assert {reason: tally.documents for reason, tally in ledger.dropped.items()} == {
        "no preference: all answers are ranked equal": 1
    }


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0.5}, 0.5),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 5.5}, 2.5),
        ({"prompt": "q", "responses": ["b", "a"], "scores": [1, 4]}, 3.0),
        ({"prompt": "q", "responses": ["b", "a"], "ranks": [4, 1]}, None),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, None),
    ],
)
def test_a_margin_is_the_rows_or_a_difference_of_scores(tmp_path: Path, row: dict, margin: float | None) -> None:
    assert read(tmp_path, row)[0][0].margin == margin


def test_pairs_that_their_scores_contradict_are_counted(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [{**pair, "score_chosen": chosen, "score_rejected": 5} for chosen in (1, 5, 9)]
    found, ledger = read(tmp_path, *rows, {**pair, "margin": -1})
    assert len(found) == 4 and ledger.notes == {AGAINST_SCORES: 2, EVEN_SCORES: 1}


def test_scores_of_ultrafeedbacks_answers_rank_them(tmp_path: Path) -> None:
    rated = [{"response": "a", "overall_score": 2}, {"response": "b", "overall_score": 9}]
    found, _ = read(tmp_path, {"instruction": "q", "completions": rated})
    assert answers(found) == [("b", "a")] and found[0].margin == 7


def test_answers_whose_numbers_are_not_known_are_not_taken_in_order(tmp_path: Path) -> None:
    rated = [{"text": "a", "quality": 2}, {"text": "b", "quality": 9}]
    with pytest.raises(ValueError, match="the answers hold 'quality', which may rank them: call what does `score`"):
        read(tmp_path, {"prompt": "q", "answers": rated})


@pytest.mark.parametrize(
    ("name", "numbers"), [("quality", [2, 9]), ("overall", ["2", "9.5"]), ("labels", [True, False])]
)
def test_numbers_beside_the_answers_are_not_passed_over(tmp_path: Path, name: str, numbers: list) -> None:
    row = {"prompt": "q", "completions": ["a", "b"], "models": ["m", "n"], name: numbers}
    with pytest.raises(ValueError, match=f"'{name}' holds a number for each answer, which may rank them: call what "):
        read(tmp_path, row)
    assert answers(read(tmp_path, row | {"ranks": [2, 1]})[0]) == [("b", "a")]


def test_a_list_without_ranks_is_taken_in_order_and_that_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    read(tmp_path, {"prompt": "q", "answers": ["a", "b"]}, said=said)
    assert len(said) == 1 and BEST_FIRST in said[0]


def test_the_format_is_reported_once_with_one_row(tmp_path: Path) -> None:
    said: list[str] = []
    read(tmp_path, *[{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}] * 2, said=said)
    assert said == [
        f"{tmp_path}/rows.jsonl: preference rows (fields prompt, chosen, rejected); "
        'the first: user "2 + 2?" -> chosen "4", rejected "5"'
    ]


def test_every_ranked_answer_in_a_tree_is_compared_with_its_siblings(tmp_path: Path) -> None:
    follow_up = node("prompter", "more", node("assistant", "d", rank=1), node("assistant", "c", rank=0))
    tree = node(
        "prompter",
        "q",
        node("assistant", "b", follow_up, rank=1),
        node("assistant", "a", rank=0),
        node("assistant", "gone", rank=2, deleted=True),
        node("assistant", "unranked", rank=None),
    )
    found, _ = read(tmp_path, {"prompt": tree})
    assert answers(found) == [("a", "b"), ("c", "d")]
    assert [message["content"] for message in found[1].chosen.messages] == ["q", "b", "more", "c"]
    assert [pair.weight for pair in found] == [1.0, 1.0]
    assert {pair.group for pair in found} == {"q"}


def test_a_tree_without_ranks_is_dropped_and_counted(tmp_path: Path) -> None:
    bare = {"prompt": node("prompter", "q", node("assistant", "a"), node("assistant", "b"))}
    ranked = {"prompt": node("prompter", "q", node("assistant", "a", rank=0), node("assistant", "b", rank=1))}
    found, ledger = read(tmp_path, bare, ranked)
    assert len(found) == 1 and sum(tally.documents for tally in ledger.dropped.values()) == 1


def test_the_prompt_of_whole_dialogues_is_what_both_begin_with(tmp_path: Path) -> None:
    turns = [USER, GOOD, {"role": "user", "content": "sure?"}]
    (pair,), _ = read(tmp_path, {"chosen": [*turns, GOOD], "rejected": [*turns, BAD]})
    assert pair.chosen.num_prompt == 3
    (pair,), _ = read(tmp_path, {"chosen": [*turns, GOOD], "rejected": [USER, BAD, turns[2], GOOD]})
    assert pair.chosen.num_prompt == 1


def test_equal_answers_are_dropped_and_counted(tmp_path: Path) -> None:
    same, apart = ({"prompt": "q", "chosen": "a", "rejected": rejected} for rejected in ("a", "b"))
    found, ledger = read(tmp_path, same, apart)
    assert answers(found) == [("a", "b")] and ledger.dropped[EQUAL].documents == 1


def test_equal_answers_take_no_weight_of_their_ranking(tmp_path: Path) -> None:
    found, ledger = read(tmp_path, {"prompt": "q", "responses": ["a", "a", "b"], "ranks": [1, 2, 3]})
    assert [pair.weight for pair in found] == [1 / 2] * 2 and ledger.dropped[EQUAL].documents == 1


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD_ROWS = [
    ("no preference", {**PAIR, "rejected": None}, "'rejected' is missing or null"),
    ("no preference", {"prompt": "q", "chosen": "a"}, "'rejected' is missing or null"),
    ("does not end with an answer", {**PAIR, "chosen": [GOOD, USER]}, "'chosen' ends with a user turn"),
    ("message without content", {**PAIR, "rejected": " "}, "the assistant's message is empty"),
    ("malformed margin", {**PAIR, "margin": "wide"}, "'margin' holds 'wide', not a number"),
    ("invalid UTF-8", {**PAIR, "rejected": "\ud800"}, "half a surrogate pair"),
]


@pytest.mark.parametrize(("reason", "row", "message"), BAD_ROWS)
def test_a_bad_row_is_an_error_that_names_its_line_or_is_counted(
    tmp_path: Path, reason: str, row: dict, message: str
) -> None:
    told = fault(tmp_path, PAIR, row)
    assert told.startswith("rows.jsonl:2: ") and message in told and "data.on_bad_row=skip" in told
    found, ledger = read(tmp_path, PAIR, row, on_bad_row="skip")
    assert len(found) == 1 and {why: tally.documents for why, tally in ledger.bad_rows.items()} == {reason: 1}


def test_a_bad_first_row_does_not_decide_the_format(tmp_path: Path) -> None:
    found, _ = read(tmp_path, {"chosen": ASKED + " 4", "rejected": None}, FORMATS[10][1], on_bad_row="skip")
    assert answers(found) == [("4", "5")]


def test_different_questions_are_no_preference(tmp_path: Path) -> None:
    other = {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "x"}, BAD]}
    assert "do not begin with the same message" in fault(tmp_path, other)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [([1], "'ranks' does not hold a number for each of 2 answers"), ([1, "x"], "does not hold a number for each")],
)
def test_ranks_that_do_not_fit_the_answers_are_bad(tmp_path: Path, ranks: list, message: str) -> None:
    assert message in fault(tmp_path, {"prompt": "q", "responses": ["a", "b"], "ranks": ranks})


def test_labelled_answers_are_refused_by_name(tmp_path: Path) -> None:
    assert "a row with a label (KTO) holds one answer" in fault(
        tmp_path, {"prompt": "q", "completion": "a", "label": True}
    )


def test_a_row_of_no_format_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    assert "{prompt: FIELD, chosen: FIELD, rejected: FIELD}" in fault(tmp_path, {"q": "x", "a": "y"})


def test_a_mapping_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no field 'z' (mapped to 'prompt'" in fault(tmp_path, PAIR, prompt="z")
    assert "maps 'better'" in fault(tmp_path, PAIR, better="chosen")


def test_all_pairs_of_a_question_fall_into_the_same_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 50}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(200)]
    shares: dict[str, set[float]] = {}
    for pair in read(tmp_path, *rows)[0]:
        shares.setdefault(pair.group, set()).add(eval_share(pair))
    assert len(shares) == 50 and all(len(found) == 1 for found in shares.values())
    assert 0.2 < sum(next(iter(found)) < 0.5 for found in shares.values()) / 50 < 0.8


@pytest.mark.parametrize("answers", [{"chosen": [GOOD], "rejected": [BAD]}, {"responses": ["4", "5"], "ranks": [1, 2]}])
def test_an_answer_begun_in_the_prompt_is_not_two_answers(tmp_path: Path, answers: dict[str, Any]) -> None:
    begun = {"role": "assistant", "content": "It is"}
    assert "the prompt ends with an assistant's message" in fault(tmp_path, {"prompt": [USER, begun], **answers})
