"""Each task reads its rows, in the hub's form and in the short one, into the same item; others are refused by line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.tasks.gsm8k import flexible, strict
from llmtrain.tasks.load import TASKS, load_task, reward_of, task_of_rows
from llmtrain.tasks.own_rows import right
from llmtrain.tasks.rows import read_task, read_tasks, task_source
from llmtrain.tasks.task import AnswerItem, AnswerTask, ChoiceItem, ContinuationItem

RECORDED = json.loads((Path(__file__).parents[2] / "parity" / "lm_eval_0_4_13.json").read_text())
ARC = ChoiceItem(("Question: Sky?\nAnswer:",) * 3, (" blue", " green", " red"), 1, (4, 5, 3))
PIQA = ChoiceItem(("Question: Boil water\nAnswer:",) * 2, (" heat it", " cool it"), 0, (7, 7))
GRANDE = ChoiceItem(("Ann hit Sue so Ann", "Ann hit Sue so Sue"), (" cried.",) * 2, 1, (18, 18))
COPA = ChoiceItem(("It rained therefore",) * 2, ("  she got wet.", "  she sang."), 0, (13, 10))

ROWS: list[tuple[str, dict[str, Any], Any]] = [
    (
        "arc_easy",
        {
            "question": "Sky?",
            "choices": {"text": ["blue", "green", "red"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        },
        ARC,
    ),
    ("arc_challenge", {"query": "Question: Sky?", "choices": ["blue", "green", "red"], "gold": 1}, ARC),
    ("piqa", {"goal": "Boil water", "sol1": "heat it", "sol2": "cool it", "label": 0}, PIQA),
    ("piqa", {"query": "Question: Boil water\n", "choices": ["heat it", "cool it"], "gold": 0}, PIQA),
    ("winogrande", {"sentence": "Ann hit Sue so _ cried.", "option1": "Ann", "option2": "Sue", "answer": "2"}, GRANDE),
    (
        "winogrande",
        {"context_options": ["Ann hit Sue so Ann", "Ann hit Sue so Sue"], "continuation": "cried.", "gold": 1},
        GRANDE,
    ),
    (
        "copa",
        {"premise": "It rained.", "question": "effect", "choice1": "She got wet.", "choice2": "She sang.", "label": 0},
        COPA,
    ),
    ("copa", {"query": "It rained, therefore", "choices": ["she got wet.", "she sang."], "gold": 0}, COPA),
    (
        "hellaswag",
        {
            "activity_label": "Roof",
            "ctx_a": "A man [title] climbs.",
            "ctx_b": "he",
            "endings": ["falls. [step] Ow", "sings"],
            "label": "1",
        },
        ChoiceItem(("Roof: A man.  climbs. He".replace("  ", " "),) * 2, (" falls. Ow", " sings"), 1, (9, 5)),
    ),
    ("lambada", {"text": "a b c d"}, ContinuationItem("a b c", " d")),
    ("gsm8k", {"question": "1+1?", "answer": "#### 2"}, AnswerItem("Question: 1+1?\nAnswer:", " #### 2")),
    (
        "choices",
        {"prompt": "2+2?", "choices": ["4", "5"], "answer": "5"},
        ChoiceItem(("2+2?",) * 2, (" 4", " 5"), 1, (1, 1)),
    ),
    (
        "choices",
        {"prompt": "2+2?", "choices": ["4", "5"], "answer": "B"},
        ChoiceItem(("2+2?",) * 2, (" 4", " 5"), 1, (1, 1)),
    ),
    (
        "choices",
        {"prompt": "2+2?", "choices": ["4", "5"], "answer": 1},
        ChoiceItem(("2+2?",) * 2, (" 4", " 5"), 1, (1, 1)),
    ),
    ("answers", {"question": "2+2?", "answer": 4}, AnswerItem("2+2?", " 4")),
    ("countdown", {"nums": [1, 2], "target": 3, "prompt": [{"role": "user", "content": "Go"}]}, AnswerItem("Go")),
    ("text", {"text": "Hello"}, "Hello"),
]

FAULTS: list[tuple[str, dict[str, Any], str]] = [
    (
        "arc_easy",
        {"question": "Sky?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
        "none of",
    ),
    ("piqa", {"goal": "x", "sol1": "a", "label": 0}, "no field 'sol2'"),
    ("piqa", {"query": "x", "choices": ["a", "b"], "gold": 2}, "number 3 of 2"),
    ("winogrande", {"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}, "no blank"),
    ("winogrande", {"context_options": ["a"], "continuation": "c", "gold": 0}, "two or more"),
    ("copa", {"premise": "x.", "question": "why", "choice1": "a", "choice2": "b", "label": 0}, "neither cause"),
    ("gsm8k", {"question": "1+1?"}, "no field 'answer'"),
    ("choices", {"prompt": "x", "choices": ["a", "b"], "answer": "neither"}, "neither a choice"),
    ("choices", {"prompt": "x", "choices": ["a", "b"], "answer": True}, "neither a choice"),
    ("choices", {"prompt": "x", "choices": ["a", "b"], "answer": "C"}, "number 3 of 2"),
    ("answers", {"prompt": "x", "answer": []}, "neither a text"),
    ("mbpp", {"text": "x", "test_list": []}, "not a list of tests"),
    ("countdown", {"nums": "1 2", "target": 3}, "not a list of whole numbers"),
    ("lambada", {"text": "word"}, "no last word"),
    ("text", {"text": "  "}, "not a text"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_reward_is_of_the_answer_up_to_a_stop_text_as_the_evaluation_is() -> None:
    def exact(prompts: list[Any], responses: list[str], rows: list[Any], *, bonus: float = 0.0) -> list[float]:
        return [float(response == row["answer"]) + bonus for response, row in zip(responses, rows, strict=True)]

    task = AnswerTask("t", "s", lambda fields: AnswerItem(""), {"exact": exact}, stop=("\n", "Q:"))
    assert task.reward(["p"] * 3, ["cats\nand", "catsQ: \n", "cat"], [{"answer": "cats"}] * 3) == [1.0, 1.0, 0.0]
    assert list(inspect.signature(task.reward).parameters) == ["prompts", "responses", "rows", "bonus"]


@pytest.mark.parametrize(("task", "row", "item"), ROWS)
def test_a_row_becomes_its_item(task: str, row: dict[str, Any], item: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    found = read_task(TASKS[task], Source(path=str(path)), limit=None, shots=0)
    assert [each.item for each in found.rows] == [item]


@pytest.mark.parametrize(("task", "row", "message"), FAULTS)
def test_a_row_in_another_form_is_named_by_its_line(
    task: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = next(
        each for name, each, _ in [*ROWS, ("mbpp", {"text": "t", "test_list": ["assert 1"]}, 0)] if name == task
    )
    path = write(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: not in the form of {task}: .*{message}"):
        read_task(TASKS[task], Source(path=str(path)), limit=None, shots=0)


def test_equal_items_have_keys_of_their_own_and_equal_ones_in_any_file(tmp_path: Path) -> None:
    short = {"query": "It rained, therefore", "choices": ["she got wet.", "she sang."], "gold": 0}
    long = {
        "premise": "It rained.",
        "question": "effect",
        "choice1": "She got wet.",
        "choice2": "She sang.",
        "label": 0,
    }
    first = read_task(TASKS["copa"], Source(path=str(write(tmp_path / "a.jsonl", [short, short]))), limit=None)
    second = read_task(TASKS["copa"], Source(path=str(write(tmp_path / "b.jsonl", [long]))), limit=None)
    assert first.rows[0].key == second.rows[0].key
    assert first.rows[1].key == f"{first.rows[0].key}-2"


def test_the_first_rows_are_examples_and_not_evaluated(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(4)]
    path = write(tmp_path / "gsm8k.jsonl", rows)
    found = read_task(TASKS["gsm8k"], Source(path=str(path)), limit=1, shots=2)
    assert found.example_text() == "Question: 0?\nAnswer: #### 0\n\nQuestion: 1?\nAnswer: #### 1\n\n"
    assert [row.fields["question"] for row in found.rows] == ["2?"]
    with pytest.raises(ValueError, match="finds 4 rows, of which the first 5 are examples"):
        read_task(TASKS["gsm8k"], Source(path=str(path)), limit=None)


def test_a_tasks_file_is_found_by_its_name_in_a_folder(tmp_path: Path) -> None:
    piqa = write(tmp_path / "deep" / "piqa.jsonl", [{}])
    write(tmp_path / "gsm8k" / "train.jsonl", [{}])
    test = write(tmp_path / "gsm8k" / "test.jsonl", [{}])
    easy = write(tmp_path / "ARC-Easy" / "validation-0.jsonl", [{}])
    for name, path in (("piqa", piqa), ("gsm8k", test), ("arc_easy", easy)):
        assert task_source(TASKS[name], str(tmp_path)).path == str(path)
    with pytest.raises(ValueError, match=r"which file is copa's\? \(none\): name it, as copa=FILE"):
        task_source(TASKS["copa"], str(tmp_path))
    write(tmp_path / "other" / "piqa.jsonl", [{}])
    with pytest.raises(ValueError, match=r"deep/piqa.jsonl, other/piqa.jsonl"):
        task_source(TASKS["piqa"], str(tmp_path))


def test_texts_are_read_from_files_of_texts_too(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for name in ("a.md", "b.txt"):
        (tmp_path / "books" / name).write_text(f"Text of {name}")
    (tmp_path / "books" / "empty.txt").write_text("")
    found = read_task(TASKS["text"], task_source(TASKS["text"], str(tmp_path / "books")), limit=None)
    assert [row.item for row in found.rows] == ["Text of a.md", "Text of b.txt"]


def test_the_hub_is_asked_where_no_file_is_named() -> None:
    source = task_source(TASKS["arc_easy"], None)
    assert (source.path, source.split, source.subset) == ("allenai/ai2_arc", "test", "ARC-Easy")
    with pytest.raises(ValueError, match="countdown has no data on the hub"):
        task_source(TASKS["countdown"], None)


def test_the_scores_of_gsm8k_are_those_of_the_harness() -> None:
    recorded = RECORDED["gsm8k_scores"]
    assert {score for row in recorded for score in row[2:]} == {0.0, 1.0}
    for response, gold, strict_score, flexible_score in recorded:
        row = {"answer": gold}
        assert strict([""], [response], [row]) == [strict_score], (response, gold)
        assert flexible([""], [response], [row]) == [flexible_score], (response, gold)


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        (" Paris.", "paris", 1),
        ("Lyon", "Paris", 0),
        ("4.0", 4, 1),
        ("four", ["4", "Four"], 1),
        ("<think>5</think> 4", "4", 1),
    ],
)
def test_an_answer_is_right_as_a_text_or_as_a_number(response: str, answer: Any, score: float) -> None:
    assert right([""], [response], [{"answer": answer}]) == [score]


def test_rows_say_which_task_they_are() -> None:
    assert task_of_rows({"prompt": 1, "choices": 2}).name == "choices"
    assert task_of_rows({"prompt": 1, "answer": 2}).name == "answers"
    assert task_of_rows({"text": 1}).name == "text"


def test_a_users_file_is_a_task_and_a_reward(tmp_path: Path) -> None:
    path = tmp_path / "shout.py"
    path.write_text(
        "from llmtrain.tasks.task import AnswerItem, AnswerTask, text_of\n"
        "def item(fields):\n    return AnswerItem(text_of(fields, 'prompt'))\n"
        "def loud(prompts, responses, rows):\n    return [float(text.isupper()) for text in responses]\n"
        "TASK = AnswerTask('shout', 'ours', item, {'loud': loud})\n"
    )
    task = load_task(str(path), "--tasks")
    assert isinstance(task, AnswerTask) and task.name == "shout"
    reward, code = reward_of(str(path), "rollout.rewards[0]")
    assert reward([""], ["HI"], [{}]) == [1.0] and set(code) == {"shout.py"}


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tasks: no task 'arc_eazy': the nearest is arc_easy"):
        load_task("arc_eazy", "--tasks")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"empty\.py has no TASK"):
        load_task(str(tmp_path / "empty.py"), "--tasks")
    (tmp_path / "odd.py").write_text("TASK = 3")
    with pytest.raises(ValueError, match=r"TASK is no task .* but int"):
        load_task(str(tmp_path / "odd.py"), "--tasks")
    with pytest.raises(ValueError, match="the task piqa scores no generated answers"):
        reward_of("piqa", "rollout.rewards[0]")
    with pytest.raises(ValueError, match=r"task:mine\.jsonl is a file of rows: .* the reward task:answers"):
        reward_of("mine.jsonl", "rollout.rewards[0]")


def test_rows_of_no_task_are_refused_with_the_forms_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"word": "hot", "opposite": "cold"}])
    with pytest.raises(ValueError, match=r"fields 'word', 'opposite' are of no task: .*prompt, answer.* FILE\.py=ROWS"):
        read_tasks([str(path)], "--tasks", None, None)


def test_a_users_task_without_a_file_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from llmtrain.tasks.task import TextTask\nTASK = TextTask('t', 's', lambda fields: fields['text'])"
    )
    with pytest.raises(ValueError, match=r"eval\.tasks: .*own\.py has no data on the hub: .* as .*own\.py=FILE"):
        read_tasks([str(path)], "eval.tasks", None, None)


def test_an_item_of_a_users_task_that_raises_names_the_row_and_the_line_of_code(tmp_path: Path) -> None:
    path, rows = tmp_path / "own.py", write(tmp_path / "rows.jsonl", [{"text": "a"}, {"txt": "b"}])
    path.write_text(
        "from llmtrain.tasks.task import TextTask\nTASK = TextTask('t', 's', lambda fields: fields['text'])"
    )
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: the item of t fails: KeyError: 'text' \(.*own\.py:2\)"):
        read_tasks([f"{path}={rows}"], "--tasks", None, None)
