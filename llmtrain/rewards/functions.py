"""Computed rewards: functions of (prompts, responses, rows) with keyword settings -> one score per response.

`rows` are the data rows of the prompts, so an answer to compare with is a field of its row. REWARDS names the functions
for a configuration; `score` calls them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from llmtrain.config.rl import SandboxMode
from llmtrain.data.thoughts import without_thoughts
from llmtrain.rewards.asserts import split
from llmtrain.rewards.fences import fenced
from llmtrain.rewards.final_answer import ANSWER_TAG, final_answer, number
from llmtrain.rewards.jail import find_jail
from llmtrain.rewards.limited import Answer, LimitedChild
from llmtrain.rewards.math_check import formulas_equal, require_math_verify
from llmtrain.rewards.row import Prompt, Row, RowError, row_field, row_text, row_texts
from llmtrain.rewards.sandbox import OUTCOMES, Limits, run_all
from llmtrain.rewards.sentences import sentences

REGEX_CHILD = Path(__file__).with_name("regex_child.py")
MAX_EQUATION_CHARS = 200  # a longer one may nest deeper than Python parses
EQUATION = re.compile(r"[0-9+\-*/() ]*")  # all else that Python would parse, 0x10 or 1_0, is none
PYTHON = ("python", "python3", "py")
JSON = ("json", "jsonc", "json5")

LogMetric = Callable[[str, float], None]
"""Logs a number of a sample under a name; the run's log has its mean."""


def _log_nothing(name: str, value: float) -> None:
    pass


class Reward(Protocol):
    """Scores, one for each response, higher is better; the same for the same input."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row]) -> Sequence[float]: ...


def exact_match(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    field: str = "answer",
    ignore_case: bool = False,
) -> list[float]:
    """1 if the answer is the row's, or one of its list; white space at the ends and thoughts do not count."""

    def plain(text: str) -> str:
        return text.strip().casefold() if ignore_case else text.strip()

    scores = []
    for response, row in zip(responses, rows, strict=True):
        accepted = {plain(one) for one in row_texts(row, field)}
        scores.append(float(plain(without_thoughts(response)) in accepted))
    return scores


def regex(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    pattern: str,
    whole: bool = False,
    seconds: float = 2.0,
    log_metric: LogMetric = _log_nothing,
) -> list[float]:
    """1 if the pattern is found in the response; with `whole`, if it matches all of it.

    A search that takes more than `seconds`, as patterns with repeats in repeats may, counts as none and is logged.
    """
    if seconds <= 0:
        raise ValueError(f"seconds {seconds}: must be above 0")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    found = [_searching(seconds).ask({"pattern": pattern, "text": text, "whole": whole}) for text in responses]
    _log_problems("regex", found, log_metric)
    return [float(answer == "yes") for answer in found]


def gsm8k(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    field: str = "answer",
    seconds: float = 5.0,
    log_metric: LogMetric = _log_nothing,
) -> list[float]:
    """1 if the final answer of the response equals that of the row's answer.

    It is after #### (Cobbe et al. 2021), else in the last \\boxed{}, else the last number: 18 in "9 * 2 = 18", in "so
    \\boxed{18} and not 19", in "#### 18". Numbers are compared as numbers, formulas by math-verify, for at
    most `seconds` each. Thoughts do not count. The row's answer may be a number.
    """
    if seconds <= 0:
        raise ValueError(f"seconds {seconds}: must be above 0")
    require_math_verify()
    found: list[Answer] = []
    for response, row in zip(responses, rows, strict=True):
        gold = final_answer(row_text(row, field))
        if gold is None:
            raise RowError(f"the row's field {field!r} holds no number: {row_field(row, field)!r}")
        answer = final_answer(response)
        found.append("no" if answer is None else _compared(gold, answer, seconds))
    _log_problems("gsm8k", found, log_metric)
    return [float(answer == "yes") for answer in found]


def json_valid(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    kind: Literal["any", "object", "array"] = "any",
    keys: list[str] | None = None,
) -> list[float]:
    """1 if the response, or its first code block, is JSON of the kind; with `keys`, an object that has them all."""
    kinds = {"any": object, "object": dict, "array": list}
    scores = []
    for response in responses:
        try:
            value = json.loads(fenced(response, JSON), parse_constant=_not_json)
        except (ValueError, RecursionError):
            scores.append(0.0)
            continue
        has_keys = keys is None or (isinstance(value, dict) and all(key in value for key in keys))
        scores.append(float(isinstance(value, kinds[kind]) and has_keys))
    return scores


def max_sentences(
    prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row], *, limit: int = 1
) -> list[float]:
    """1 if the response has at least one sentence and at most `limit`."""
    if limit < 1:
        raise ValueError(f"limit {limit}: must be at least 1")
    return [float(1 <= len(sentences(without_thoughts(response))) <= limit) for response in responses]


def length(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    target: int | None = None,
    minimum: int | None = None,
    maximum: int | None = None,
    unit: Literal["words", "characters"] = "words",
) -> list[float]:
    """1 at the `target` length, falling by the relative distance to 0; or 1 within `minimum` and `maximum`, else 0."""
    if (target is None) == (minimum is None and maximum is None):
        raise ValueError("give either target, or minimum or maximum or both")
    if target is not None and target < 1:
        raise ValueError(f"target {target}: must be at least 1")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise ValueError(f"minimum {minimum} is above maximum {maximum}")
    lengths = [len(response.split() if unit == "words" else response.strip()) for response in responses]
    if target is not None:
        return [max(0.0, 1 - abs(count - target) / target) for count in lengths]
    return [float((minimum or 0) <= count and (maximum is None or count <= maximum)) for count in lengths]


def code_tests(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    field: str = "test_list",
    setup_field: str = "test_setup_code",
    partial: bool = False,
    seconds: int = 5,
    memory_mb: int = 512,
    sandbox: SandboxMode = "auto",
    log_metric: LogMetric = _log_nothing,
) -> list[float]:
    """1 if the response's Python passes every assert of its row (MBPP, Austin et al. 2021), else 0.

    With `partial`, the fraction of asserts that pass. The code is the first code block, or the whole response; it runs
    in `sandbox`, with only the standard library, for at most `seconds` of CPU time. How programs ended is logged.
    """
    limits, jail = Limits(seconds, memory_mb), find_jail(sandbox)
    programs = []
    for response, row in zip(responses, rows, strict=True):
        tests = row_field(row, field)
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise RowError(f"the row's field {field!r} is not a list of tests: {tests!r}")
        programs.append((fenced(response, PYTHON), split(tests, str(row.get(setup_field) or ""))))
    scores = []
    for verdict, (_, asserts) in zip(run_all(programs, limits, jail), programs, strict=True):
        for outcome in OUTCOMES:
            log_metric(f"code_tests/{outcome}", float(verdict.outcome == outcome))
        share = verdict.num_passed / len(asserts.tests)
        scores.append(share if partial else float(share == 1))
    return scores


def countdown(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    numbers_field: str = "nums",
    target_field: str = "target",
    all_numbers: bool = True,
) -> list[float]:
    """1 if the response's equation reaches the row's target with the row's numbers, each once, and only + - * /.

    The equation is the last <answer>, else the last line. Without `all_numbers` some numbers may be unused.
    """
    scores = []
    for response, row in zip(responses, rows, strict=True):
        numbers = row_field(row, numbers_field)
        if not isinstance(numbers, list):
            raise RowError(f"the row's field {numbers_field!r} is not a list of numbers: {numbers!r}")
        available = Counter(_fraction(number, numbers_field) for number in numbers)
        target = _fraction(row_field(row, target_field), target_field)
        used: list[Fraction] = []
        value = _value(_equation(response), used)
        numbers_hold = Counter(used) == available if all_numbers else Counter(used) <= available
        scores.append(float(numbers_hold and value == target))
    return scores


# Each is a Reward once its settings are given.
REWARDS: dict[str, Callable[..., list[float]]] = {
    "exact_match": exact_match,
    "regex": regex,
    "gsm8k": gsm8k,
    "json_valid": json_valid,
    "max_sentences": max_sentences,
    "length": length,
    "code_tests": code_tests,
    "countdown": countdown,
}


def _compared(gold: str, answer: str, seconds: float) -> Answer:
    """Whether two answers are equal; "5%" is 5, and 0.05."""
    first, second = number(gold), number(answer)
    if first is None or second is None:
        return formulas_equal(gold, answer, seconds)
    return "yes" if first == second or ("%" in answer and first == second / 100) else "no"


@cache
def _searching(seconds: float) -> LimitedChild:
    return LimitedChild(REGEX_CHILD, seconds, f"{sys.executable} {REGEX_CHILD}")


def _log_problems(reward: str, found: Sequence[Answer], log_metric: LogMetric) -> None:
    """Log how many questions to a child had no answer."""
    for answer in found:
        for problem in ("timeout", "crash"):
            log_metric(f"{reward}/{problem}", float(answer == problem))


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is Python's, not JSON's")


def _fraction(number: Any, field: str) -> Fraction:
    """A number of a row. Raises RowError."""
    try:
        return Fraction(number)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise RowError(f"the row's field {field!r} holds {number!r}, which is no number") from None


def _equation(response: str) -> str:
    answer = without_thoughts(response)
    tagged = ANSWER_TAG.findall(answer)
    lines = (tagged[-1] if tagged else answer).strip().splitlines()
    return lines[-1].split("=")[0].strip() if lines else ""


def _value(equation: str, used: list[Fraction]) -> Fraction | None:
    """The value of an equation of whole numbers, which are appended to `used`; None if it is not one."""
    if len(equation) > MAX_EQUATION_CHARS or not EQUATION.fullmatch(equation):
        return None
    try:
        return _evaluate(ast.parse(equation, mode="eval").body, used)
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError, MemoryError):  # what hostile text meets
        return None


def _evaluate(node: ast.AST, used: list[Fraction]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            used.append(Fraction(number))
            return used[-1]
        case ast.BinOp(left=left, op=op, right=right):
            first, second = _evaluate(left, used), _evaluate(right, used)
            match op:
                case ast.Add():
                    return first + second
                case ast.Sub():
                    return first - second
                case ast.Mult():
                    return first * second
                case ast.Div():
                    return first / second
    raise ValueError("not a sum, difference, product or quotient of whole numbers")
