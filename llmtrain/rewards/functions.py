"""Computed rewards: functions of (prompts, responses, rows) with keyword settings -> one score per response.

`rows` are the data rows of the prompts, so an answer to compare with is a field of its row. REWARDS names the functions
for a configuration; `score` calls them.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, Protocol

from llmtrain.rewards.sandbox import Limits, run_all
from llmtrain.rewards.sentences import sentences

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a chat."""

Row = Mapping[str, Any]

NUMBER = re.compile(r"(?<![\w.])-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
MARKED = re.compile(rf"####\s*\$?({NUMBER.pattern})")
BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
FENCED = re.compile(r"```[ \t]*(?:[\w+-]*)[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
MAX_EQUATION_CHARS = 200  # a longer one may nest deeper than Python parses


class Reward(Protocol):
    """Scores, one for each response, higher is better; the same for the same input."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row]) -> Sequence[float]: ...


class RowError(ValueError):
    """A row that a reward cannot be computed from."""


def exact_match(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    field: str = "answer",
    ignore_case: bool = False,
) -> list[float]:
    """1 if the response is the row's answer, or one of a list of answers; white space at the ends does not count."""

    def plain(text: str) -> str:
        return text.strip().casefold() if ignore_case else text.strip()

    scores = []
    for response, row in zip(responses, rows, strict=True):
        answer = _field(row, field)
        accepted = answer if isinstance(answer, list) else [answer]
        scores.append(float(plain(response) in {plain(str(one)) for one in accepted}))
    return scores


def regex(
    prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row], *, pattern: str, whole: bool = False
) -> list[float]:
    """1 if the pattern is found in the response; with `whole`, if it matches all of it."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    match = compiled.fullmatch if whole else compiled.search
    return [float(match(response) is not None) for response in responses]


def gsm8k(
    prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row], *, field: str = "answer"
) -> list[float]:
    """1 if the final number of the response is that of the row's answer.

    The final number follows #### (Cobbe et al. 2021), else it is the last in the last \\boxed{}, else the last of the
    text: 18 in "9 * 2 = 18", in "so it is \\boxed{18} and not 19", in "#### 18". The row's answer may be a number.
    """
    scores = []
    for response, row in zip(responses, rows, strict=True):
        answer = _last_number(str(_field(row, field)))
        if answer is None:
            raise RowError(f"the row's field {field!r} holds no number: {_field(row, field)!r}")
        scores.append(float(_last_number(response) == answer))
    return scores


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
            value = json.loads(_fenced(response), parse_constant=_not_json)
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
    return [float(1 <= len(sentences(response)) <= limit) for response in responses]


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
) -> list[float]:
    """1 if the response's Python passes every assert of its row (MBPP, Austin et al. 2021), else 0.

    With `partial`, the fraction of asserts that pass. The code is the first code block, or the whole response; it runs
    in `sandbox`, with only the standard library, for at most `seconds` of CPU time.
    """
    limits = Limits(seconds, memory_mb)
    programs = []
    for response, row in zip(responses, rows, strict=True):
        tests = _field(row, field)
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise RowError(f"the row's field {field!r} is not a list of tests: {tests!r}")
        programs.append((f"{row.get(setup_field) or ''}\n{_fenced(response)}", tests))
    num_passed = [verdict.num_passed for verdict in run_all(programs, limits)]
    shares = [passed / len(tests) for passed, (_, tests) in zip(num_passed, programs, strict=True)]
    return shares if partial else [float(share == 1) for share in shares]


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
        available = Counter(Fraction(number) for number in _field(row, numbers_field))
        used: list[Fraction] = []
        value = _value(_equation(response), used)
        numbers_hold = Counter(used) == available if all_numbers else Counter(used) <= available
        scores.append(float(numbers_hold and value == Fraction(_field(row, target_field))))
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


def _field(row: Row, name: str) -> Any:
    if name not in row:
        raise RowError(
            f"the row has no field {name!r}, only {', '.join(map(repr, row)) or 'none'}: set the reward's field"
        )
    return row[name]


def _last_number(text: str) -> Decimal | None:
    """The final number of a solution."""
    boxes = BOXED.findall(text)
    found = MARKED.findall(text) or NUMBER.findall(boxes[-1] if boxes else text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _fenced(response: str) -> str:
    """The first code block, else the whole response."""
    block = FENCED.search(response)
    return block[1] if block else response.strip()


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is Python's, not JSON's")


def _equation(response: str) -> str:
    tagged = ANSWER_TAG.findall(response)
    lines = (tagged[-1] if tagged else response).strip().splitlines()
    return lines[-1].split("=")[0].strip() if lines else ""


def _value(equation: str, used: list[Fraction]) -> Fraction | None:
    """The value of an equation of whole numbers, which are appended to `used`; None if it is not one."""
    if len(equation) > MAX_EQUATION_CHARS:
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
