"""Final answers are found where a solution gives them, and are equal when they are the same number or formula."""

from __future__ import annotations

import json
import os
import time
from fractions import Fraction
from pathlib import Path

import pytest

from llmtrain.rewards.final_answer import final_answer, number
from llmtrain.rewards.functions import gsm8k
from llmtrain.rewards.math_check import formulas_equal

GSM8K = "LLMTRAIN_GSM8K"  # a folder with gsm8k's train.jsonl, or the file itself


def is_right(response: str, gold: object) -> bool:
    return gsm8k([""], [response], [{"answer": gold}]) == [1.0]


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        # thousands, decimals, signs
        ("1000", r"\boxed{1{,}000}", True),
        ("1000", r"\boxed{1\,000}", True),
        ("1000", r"\boxed{1,000}", True),
        ("1234567", r"\boxed{1 234 567}", True),
        ("1234567", "It is 1,234,567.", True),
        ("18", r"\boxed{18.00}", True),
        ("18", r"\boxed{018}", True),
        ("18", r"\boxed{18.}", True),
        ("18", "18.5", False),
        # ratios, times, ranges are no number
        ("12", "#### 12:30", False),
        ("3", "#### 3:4", False),
        ("12", "#### 12-15", False),
        ("12", "#### 12\u201315", False),
        ("12", "#### 12: the sum", True),
        ("12", "#### 12 - as shown", True),
        ("#### 3:4", "#### 3:4", True),
        ("0.5", ".5", True),
        ("3", "\u22123", False),
        ("-3", "\u22123", True),
        ("-3", "\u20133", True),
        ("3", "\uff13", True),
        ("-3", "#### \u22123", True),
        ("6", "10-6", True),
        ("-6", "10-6", False),
        # fractions
        ("2", r"\frac{1}{2}", False),
        ("2", r"\boxed{\frac{1}{2}}", False),
        ("0.5", r"\boxed{\frac{1}{2}}", True),
        ("0.5", r"\boxed{\frac12}", True),
        ("0.5", r"so it is \dfrac{1}{2}.", True),
        ("4", "3/4", False),
        ("0.75", "3/4", True),
        ("3/4", "0.75", True),
        (r"\frac{3}{4}", "#### 6/8", True),
        ("2.5", "2 1/2 cups", True),
        ("2.5", r"\boxed{2\frac{1}{2}}", True),
        ("0.5", "-1/2", False),
        ("-0.5", r"\boxed{-\frac{1}{2}}", True),
        ("0.333", r"\boxed{\frac{1}{3}}", False),
        ("3", r"\boxed{\frac{1}{0}}", False),
        ("2.5", "2\u00bd", True),
        ("0.75", r"\boxed{\u00be}".replace(r"\u00be", "\u00be"), True),
        ("100", r"\boxed{10^2}", True),
        ("100", "\\boxed{10\u00b2}", True),
        ("102", "\\boxed{10\u00b2}", False),
        ("18", "\\boxed{18 cm\u00b2}", True),
        ("1000", "#### 1 000", True),
        ("1000", "#### 1 000.", True),
        ("1000", "The answer is 1 000.", True),
        ("1000", "The answer is 1'000.", True),
        ("1234567", "#### 1\u2019234\u2019567", True),
        ("12345678", "So 12 345 678 dollars", True),
        ("1000", "<answer>1 000</answer>", True),
        ("100", "In 2010 100 people came", True),
        ("1000", "#### 1\u202f000 eggs", True),
        ("1000000", "#### 1\u00a0000\u00a0000", True),
        # units and money
        ("18", "The area is 18 cm\u00b2.", True),
        ("18", "The area is 18 cm^2.", True),
        ("18", r"The area is $18 \text{ cm}^{2}$.", True),
        ("18", r"\boxed{18 \text{ cm}^2}", True),
        ("18", r"\boxed{18\,\mathrm{m}}", True),
        ("18", r"\boxed{18 dollars}", True),
        ("18", r"\boxed{\$18}", True),
        ("18", r"$18.00", True),
        ("18", "\u20ac18", True),
        ("18", r"\boxed{18\%}", True),
        ("0.18", r"\boxed{18\%}", True),
        ("18", r"\boxed{18^\circ}", True),
        ("18", r"\boxed{\text{18}}", True),
        ("18", r"\boxed{\text{The answer is } 18}", True),
        ("18", r"\boxed{18x}", False),
        ("18", r"\boxed{18 \text{ or } 19}", False),
        # formulas
        ("18", r"\boxed{x = 18}", True),
        ("6", r"\boxed{\sqrt{36}}", True),
        ("6", r"\boxed{2 \cdot 3}", True),
        ("6", r"\boxed{\left(6\right)}", True),
        ("6", r"\boxed{5, 6}", False),
        ("1500", r"\boxed{1.5 \times 10^3}", True),
        ("1500", "1.5e3", True),
        ("1000000", r"\boxed{10^6}", True),
        (r"\boxed{\sqrt{2}}", r"\boxed{2^{1/2}}", True),
        (r"\boxed{\sqrt{2}}", r"\boxed{1.4}", False),
        (r"\boxed{x^2 + 2x + 1}", r"\boxed{(x+1)^2}", True),
        ("18", r"\boxed{\infty}", False),
        ("18", r"\boxed{}", False),
        ("18", r"\boxed{18", True),
        ("18", r"\boxed{eighteen}", False),
        # where it is
        ("18", "#### **18** (3 more)", True),
        ("18", "#### `18`", True),
        ("18", r"#### \(18\)", True),
        ("18", r"#### $18$", True),
        ("18", r"#### \boxed{18}", True),
        ("18", "#### Answer: 18", True),
        ("18", "#### 18 eggs, not 20", True),
        ("18", "#### 3. Conclusion\nIt is 18", True),
        ("18", "#### Step 2\nIt is 18", True),
        ("18", "<think>#### 5</think>It is 18", True),
        ("5", "<think>#### 5</think>It is 18", False),
        ("18", "<think>It is 18, or", False),
        ("18", "a\n</think>\n\n#### 18", True),
        ("18", "<answer>18</answer> in 3 steps", True),
        ("18", r"\boxed{17} no, \boxed{18}, after 3 steps", True),
        ("18", "**Answer:** **18**", True),
        ("2020", "on 12/25/2020", True),
        ("24", "48/2 = <<48/2=24>>24", True),
        ("18", "", False),
    ],
)
def test_hard_forms(gold: str, response: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert is_right(response, gold) is right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1{,}000.5", Fraction(2001, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        ("5\\%", 5),
        ("x", None),
        ("5, 6", None),
        ("9+9", None),
    ],
)
def test_a_number_is_read_with_its_unit_and_a_formula_is_none(text: str, value: Fraction | None) -> None:
    assert number(text) == value


def test_a_long_answer_is_read_in_linear_time() -> None:
    pieces = ["\\boxed{", "#### ", "1 ", "1/", "<answer>", "\\frac{1}{", "</think>", "1,000", "\\text{", "18 a "]
    short, long = (max(seconds_for(piece * count) for piece in pieces) for count in (2_000, 20_000))
    assert long < 40 * max(short, 0.002)  # ten times as long; a hundred times, if it were quadratic


def seconds_for(text: str) -> float:
    started = time.process_time()
    number(final_answer(text) or "")
    return time.process_time() - started


def test_a_formula_that_takes_for_ever_is_ended_and_the_next_is_answered() -> None:
    pytest.importorskip("math_verify")
    assert formulas_equal("2", r"\sqrt{4}", 20.0) == "yes"
    assert formulas_equal("2", r"9^{9^{9^{9}}} + \int_0^1 x^{x^x} dx", 0.05) in ("timeout", "crash")
    assert formulas_equal("2", r"\sqrt{9}", 20.0) == "no"


@pytest.mark.soak
def test_every_gold_of_gsm8k_is_itself_and_nothing_else() -> None:
    pytest.importorskip("math_verify")
    given = os.environ.get(GSM8K)
    if given is None:
        pytest.skip(f"set {GSM8K} to the folder of gsm8k's train.jsonl")
    path = Path(given)
    lines = (path / "train.jsonl" if path.is_dir() else path).read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 7473
    rows = [{"answer": answer} for answer in answers]
    golds = [answer.rsplit("####", 1)[1].strip() for answer in answers]
    plain = [gold.replace(",", "") for gold in golds]
    right = [
        answers,
        [f"So the answer is {gold}." for gold in golds],
        [f"\\boxed{{{gold}}} after 3 steps" for gold in plain],
        [f"<think>#### 7</think>\n#### **${gold}** in 2 days" for gold in golds],
        [f"\\[ \\boxed{{\\frac{{{2 * Fraction(gold)}}}{{2}} \\text{{ units}}}} \\]" for gold in plain],
    ]
    for responses in right:
        scores = gsm8k([""] * len(rows), responses, rows)
        assert [responses[i] for i, score in enumerate(scores) if score != 1] == []
    for responses in ([f"#### {Fraction(gold) + 1}" for gold in plain], [f"\\frac{{1}}{{{gold}}}" for gold in plain]):
        scores = gsm8k([""] * len(rows), responses, rows)
        assert [responses[i] for i, score in enumerate(scores) if score != 0 and plain[i] not in ("1", "-1")] == []
