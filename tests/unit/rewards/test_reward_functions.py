"""Each reward that can be computed, on answers that are right, wrong and odd."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llmtrain.rewards.functions import REWARDS, code_tests, countdown, gsm8k
from llmtrain.rewards.row import RowError
from llmtrain.rewards.sentences import sentences


def scored(name: str, response: str, row: dict[str, Any] | None = None, **settings: Any) -> float:
    scores = REWARDS[name]([""], [response], [row or {}], **settings)
    assert len(scores) == 1 and isinstance(scores[0], float)
    return scores[0]


@pytest.mark.parametrize("name", REWARDS)
def test_no_response_has_no_score(name: str) -> None:
    settings = {"regex": {"pattern": "a"}, "length": {"target": 3}}.get(name, {})
    assert REWARDS[name]([], [], [], **settings) == []


@pytest.mark.parametrize(
    ("response", "answer", "settings", "expected"),
    [
        (" Paris\n", "Paris", {}, 1),
        ("paris", "Paris", {}, 0),
        ("paris", "PARIS", {"ignore_case": True}, 1),
        ("Paris.", "Paris", {}, 0),
        ("4", 4, {}, 1),
        ("four", [4, "four"], {}, 1),
    ],
)
def test_exact_match(response: str, answer: Any, settings: dict[str, Any], expected: float) -> None:
    assert scored("exact_match", response, {"answer": answer}, **settings) == expected


@pytest.mark.parametrize(
    ("response", "whole", "expected"),
    [("I say yes.", False, 1), ("I say yes.", True, 0), ("yes", True, 1), ("", False, 0)],
)
def test_regex(response: str, whole: bool, expected: float) -> None:
    assert scored("regex", response, pattern="yes", whole=whole) == expected


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(\w+\s?)+\?", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_search_without_an_end_is_ended_and_the_next_response_is_scored(pattern: str, whole: bool) -> None:
    logged: list[tuple[str, float]] = []
    responses = ["a" * 60 + "!", "aa" if pattern.endswith("$") else "aa?"]
    if pattern.startswith("^"):
        responses[1] = "abCd"
    settings = {"pattern": pattern, "whole": whole, "seconds": 0.3}
    scores = REWARDS["regex"](
        [""] * 2, responses, [{}] * 2, log_metric=lambda *metric: logged.append(metric), **settings
    )
    assert scores == [0, 1]
    assert [value for name, value in logged if name == "regex/timeout"] == [1, 0]


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_limit_of_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        scored("regex", "a", pattern="a", seconds=seconds)


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("She has 72 clips.", "48/2 = <<48/2=24>>24\n#### 72", 1),
        ("First 24, then 72.", "#### 72", 1),
        ("72, not 24", "#### 72", 0),
        ("24\n#### 72 (so 3 more)", "#### 72", 1),
        (r"So 3 + 69 = \boxed{72}, done in 2 steps", "72", 1),
        ("$1,200.00 in all", "#### 1,200", 1),
        ("It costs 1200", 1200.0, 1),
        ("it is 0.5", ".5", 1),
        ("10-4=6", "6", 1),
        ("the answer is -6", "#### -6", 1),
        ("#### Step 2: conclude\nThe answer is 72.", "#### 72", 1),
        ("#### $72\n#### Step 3: rest", "#### 72", 1),
        (r"\boxed{\text{72}} and 7 more", "#### 72", 1),
        ("10-6", "#### -6", 0),
        ("1,2,3", "3", 1),
        ("no number", "#### 72", 0),
        ("", "#### 72", 0),
    ],
)
def test_gsm8k(response: str, answer: Any, expected: float) -> None:
    assert scored("gsm8k", response, {"answer": answer}) == expected


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("exact_match", None, "holds None, neither a text nor a number"),
        ("exact_match", {"text": "a"}, "holds .*, neither a text nor a number"),
        ("exact_match", ["a", None], "holds None, neither"),
        ("exact_match", [], "is an empty list: no answer would be right"),
        ("gsm8k", [18, 19], r"holds \[18, 19\], neither a text nor a number"),
        ("gsm8k", None, "holds None, neither"),
    ],
)
def test_a_row_without_an_answer_is_refused(name: str, answer: Any, message: str) -> None:
    with pytest.raises(RowError, match=f"^the row's field 'answer' {message}"):
        scored(name, "None 19", {"answer": answer})


def test_a_row_whose_answer_is_no_number_is_refused() -> None:
    with pytest.raises(RowError, match=r"^the row's field 'answer' holds no number: 'many'$"):
        gsm8k([""], ["3"], [{"answer": "many"}])


@pytest.mark.parametrize(
    ("response", "settings", "expected"),
    [
        ('{"a": 1}', {}, 1),
        ('Here:\n```json\n{"a": 1}\n```\nDone.', {}, 1),
        ("{'a': 1}", {}, 0),
        ('{"a": NaN}', {}, 0),
        ('{"a": 1', {}, 0),
        ("", {}, 0),
        ("[" * 100_000, {}, 0),
        ("3", {}, 1),
        ("3", {"kind": "object"}, 0),
        ("[1]", {"kind": "array"}, 1),
        ('{"a": 1}', {"keys": ["a", "b"]}, 0),
        ('{"a": 1, "b": 2}', {"keys": ["a", "b"]}, 1),
        ('["a", "b"]', {"keys": ["a", "b"]}, 0),
    ],
)
def test_json_valid(response: str, settings: dict[str, Any], expected: float) -> None:
    assert scored("json_valid", response, **settings) == expected


@pytest.mark.parametrize(
    ("text", "num_sentences"),
    [
        ("Paris.", 1),
        ("The capital is Paris", 1),
        ("Paris. It is big.", 2),
        ("Really?! Yes.", 2),
        ("Dr. Smith met Mr. J. R. Jones at 3.14 p.m. today.", 1),
        ("It is 5 p.m. The bank has closed.", 2),
        ("Apples, pears, etc. Bananas too.", 2),
        ("Use tools, e.g. Python, from example.com.", 1),
        ("See No. 5 and fig. 2 there.", 1),
        ("I said no. Then I left.", 2),
        ('"Stop!" he said.', 1),
        ('He said "Stop!" Then he left.', 2),
        ("Well... maybe.", 1),
        ("Well... No.", 2),
        ("1. Paris\n2. Rome", 2),
        ("- one\n- two\n\n- three", 3),
        ("A line\nthat goes on.", 1),
        ("It is Paris.It is big.", 2),
        ("**Answer:** Paris.", 1),
        ("\u5df4\u9ece\u662f\u9996\u90fd\u3002\u5b83\u5f88\u5927\u3002", 2),
        ("", 0),
        (" ...\n!", 0),
    ],
)
def test_sentences_are_counted(text: str, num_sentences: int) -> None:
    assert len(sentences(text)) == num_sentences


@pytest.mark.parametrize(
    "piece",
    [
        ". ",
        ".",
        ".x",
        '."',
        "Mr. ",
        "a.b. ",
        "Yes. no. ",
        "(((",
        ". (",
        "\n",
        "\n ",
        "No. 5 ",
        "1. ",
        "?!...",
        "e.g.",
        "a ",
    ],
)
def test_sentences_of_a_long_text_take_linear_time(piece: str) -> None:
    def seconds(count: int) -> float:
        started = time.process_time()
        sentences(piece * count + "x")
        return time.process_time() - started

    short, long = (min(seconds(count) for _ in range(3)) for count in (4_000, 40_000))
    assert long < 40 * max(short, 0.001)  # ten times as long; a hundred times, if it were quadratic


@pytest.mark.parametrize(("response", "expected"), [("Paris.", 1), ("Paris. Yes.", 1), ("A. B? C! D.", 0), ("", 0)])
def test_max_sentences(response: str, expected: float) -> None:
    assert scored("max_sentences", response, limit=2) == expected


@pytest.mark.parametrize(
    ("response", "settings", "expected"),
    [
        ("one two three four", {"target": 4}, 1),
        ("one two three", {"target": 4}, 0.75),
        ("word " * 20, {"target": 4}, 0),
        ("one two", {"minimum": 2, "maximum": 3}, 1),
        ("one", {"minimum": 2}, 0),
        ("one two three four", {"maximum": 3}, 0),
        ("abcd ", {"target": 4, "unit": "characters"}, 1),
    ],
)
def test_length(response: str, settings: dict[str, Any], expected: float) -> None:
    assert scored("length", response, **settings) == expected


UNITTEST = "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(1), 1)"
NODE = "class Node:\n    def __init__(self, v): self.v, self.left = v, None\n"
TESTS = ["assert double(2) == 4", "assert double(-1) == -2", "assert double(base) == 2"]


@pytest.mark.parametrize(
    ("response", "partial", "expected"),
    [
        ("def double(x):\n    return 2 * x", False, 1),
        ("Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles.", False, 1),
        ("def double(x):\n    return x * x", False, 0),
        ("def double(x):\n    return x * x", True, 1 / 3),
        ("It is easy.", True, 0),
    ],
)
def test_code_tests(response: str, partial: bool, expected: float) -> None:
    row = {"test_list": TESTS, "test_setup_code": "base = 1"}
    assert scored("code_tests", response, row, partial=partial) == expected


def test_a_row_without_tests_is_refused() -> None:
    with pytest.raises(RowError, match=r"^the row's field 'test_list' is not a list of tests: \[\]$"):
        code_tests([""], ["pass"], [{"test_list": []}])


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("I think.\n<answer>(44 + 19) + 35</answer>", 1),
        ("<answer> 44+19+35 = 98 </answer>", 1),
        ("Let me see.\n44 + 35 + 19 = 98", 1),
        ("<answer>44 + 19</answer>", 0),
        ("<answer>98</answer>", 0),
        ("<answer>44 + 19 + 35 + 0</answer>", 0),
        ("<answer>44 + 19 + 19 + 16</answer>", 0),
        ("<answer>44 * 19 - 35</answer>", 0),
        ("<answer>44 / (19 - 19) + 35</answer>", 0),
        ("<answer>44 ** 19 ** 35</answer>", 0),
        ("<answer>__import__('os')</answer>", 0),
        ("<answer>44 +</answer>", 0),
        ("<answer>0x2C + 19 + 35</answer>", 0),
        ("<answer>4_4 + 19 + 35</answer>", 0),
        ("<answer>44if 19else 35</answer>", 0),
        ("<answer>" + "(" * 150 + "</answer>", 0),
        ("44" + "+44" * 100_000, 0),
        ("", 0),
    ],
)
def test_countdown(response: str, expected: float) -> None:
    assert scored("countdown", response, {"nums": [44, 19, 35], "target": 98}) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"nums": "[44, 19]", "target": 63}, r"^the row's field 'nums' is not a list of numbers: '\[44, 19\]'$"),
        ({"nums": [44, "?"], "target": 63}, r"^the row's field 'nums' holds '\?', which is no number$"),
        ({"nums": [44, 19], "target": None}, "^the row's field 'target' holds None, which is no number$"),
    ],
)
def test_a_row_without_the_numbers_of_a_countdown_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        countdown([""], ["44 + 19"], [row])


def test_countdown_divides_exactly() -> None:
    assert scored("countdown", "7 / 3 * 9", {"nums": [7, 3, 9], "target": 21}) == 1


def test_countdown_may_leave_numbers_out() -> None:
    assert countdown([""], ["44 + 19"], [{"nums": [44, 19, 35], "target": 63}], all_numbers=False) == [1.0]


def test_how_programs_end_is_logged_and_stops_nothing() -> None:
    logged: list[tuple[str, float]] = []
    codes = [
        "def f(x): return x",
        "def f(x): return 1",
        "def f(x) return",
        "while True: pass",
        "import os; os._exit(0)",
    ]
    rows = [{"test_list": ["assert f(2) == 2"]}] * len(codes)
    scores = code_tests([""] * 5, codes, rows, seconds=1, log_metric=lambda name, value: logged.append((name, value)))
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0]
    happened = [name.removeprefix("code_tests/") for name, value in logged if value]
    assert happened == ["passed", "wrong", "error", "timeout", "crash"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"test_list": ["assert f(1 == 2"]},
            r"^test 1 of the row is not Python \('\(' was never closed\): 'a",
        ),
        (
            {"test_list": ["assert f(1)"], "test_setup_code": "x ="},
            r"^the setup of the row is not Python \(invalid ",
        ),
        ({"test_list": []}, r"^the row's field 'test_list' is not a list of tests: \[\]$"),
        ({"test_list": ["print(f(1))"]}, "^no test of the row checks anything, so that any code would pass"),
        ({"test_list": ["def check(g):\n    assert g(1) == 2"]}, "^check of the row's tests is never called"),
        ({"test_list": ["assert f(1) is None", "def test_b(): assert f(2)"]}, "^test_b of the row's tests is never "),
        ({"test_list": ["def verify(g): assert g(1) == 2"]}, "^no test of the row checks anything, so that any code "),
        ({"test_list": [UNITTEST]}, "^T of the row's tests is never called, so that it checks nothing: call it in a "),
    ],
)
def test_a_row_whose_tests_cannot_run_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        code_tests([""], ["def f(x): pass"], [row])


@pytest.mark.parametrize(
    "tests",
    [
        ["def check(g):\n    assert g(1) == 1", "check(f)"],
        ["def near(a, b):\n    if a != b: raise ValueError\ndef check(g): near(g(1), 1)\ncheck(f)"],
        [UNITTEST + "\nT('test_f').test_f()"],
        ["def larger(x): return x + 1\ndef unused(x): assert x", "assert larger(f(1)) == 2"],
    ],
)
def test_tests_in_functions_that_are_called_count(tests: list[str]) -> None:
    for code, expected in (("def f(x): return x", 1.0), ("def f(x): return 5", 0.0)):
        assert code_tests([""], [code], [{"test_list": tests}]) == [expected]


@pytest.mark.parametrize(
    ("setup", "code", "test"),
    [
        ("root = Node(1)\nroot.left = Node(2)", NODE + "def f(n): return n.left.v", "assert f(root) == 2"),
        (NODE, "def f(n: Node): return n.v", "assert f(Node(3)) == 3"),
        ("LIMIT = 3", "def f(x): return min(x, LIMIT)", "assert f(9) == 3"),
        ("import math", "def f(x): return math.floor(x)", "assert f(1.5) == math.floor(1.5)"),
        ("def near(a, b): return abs(a - b) < 1e-3", "def f(x): return x / 3", "assert near(f(1), 0.3333)"),
        ("def half(x): return x / 2", "def f(x): return half(x)", "assert f(4) == 2"),
    ],
)
def test_the_setup_of_a_row_is_where_it_is_needed(setup: str, code: str, test: str) -> None:
    assert code_tests([""], [code], [{"test_list": [test], "test_setup_code": setup}]) == [1.0]
