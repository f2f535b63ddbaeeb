"""Rewards by name -> the score of each response: a weighted sum, checked number by number.

A reward is one of REWARDS, a function of the user's, or one of TRL's; one that misbehaves is reported in one line with
the sample it failed on. A trained reward model joins as one more `Term`.
"""

from __future__ import annotations

import copy
import inspect
import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from llmtrain.config.rl import is_reward_model
from llmtrain.rewards.functions import REWARDS, Prompt, Reward, Row, RowError
from llmtrain.rewards.user_function import TRL, load_function

EXCERPT_CHARS = 60
OURS = {"prompts", "responses", "rows"}
COLUMNS_OF_ITS_OWN = {"prompt", "prompts", "completion", "completions"}  # which TRL fills in itself


@dataclass(frozen=True)
class Term:
    """One reward of the weighted sum."""

    name: str  # unique among the terms
    weight: float
    reward: Reward


@dataclass(frozen=True)
class Scores:
    """The score of each response, and what each term gave it before weighting."""

    total: list[float]
    by_term: dict[str, list[float]]


def load_terms(specs: Sequence[str | Mapping[str, Any]], key: str = "rollout.rewards") -> list[Term]:
    """Terms from a configuration: names, or `{name, weight, SETTING: VALUE, ...}`; a weight is 1 where none is given.

    A name is one of REWARDS, `FILE.py:FUNCTION` or `trl:FUNCTION`. A function takes (prompts, responses, rows) or, as
    TRL's do, (prompts, completions, COLUMN, ...); settings are keywords. Trained models are left to who can load them.
    Raises ValueError, naming the place under `key`, for a name, a weight or a setting that is wrong.
    """
    terms: list[Term] = []
    for number, spec in enumerate(specs):
        place = f"{key}[{number}]"
        if is_reward_model(spec):
            continue
        settings = {"name": spec} if isinstance(spec, str) else dict(spec)
        name, weight = settings.pop("name", None), term_weight(settings, place)
        settings.pop("weight", None)
        if not isinstance(name, str):
            raise ValueError(f"{place}: names no reward: give it a name, one of {', '.join(REWARDS)}")
        terms.append(Term(name, weight, _load(name, settings, place)))
    return named_apart(terms)


def term_weight(spec: Mapping[str, Any], place: str) -> float:
    """The weight of a reward's configuration, 1 where it gives none. Raises ValueError for what is no finite number."""
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ValueError(f"{place}.weight={weight!r}: must be a finite number")
    return float(weight)


def named_apart(terms: Sequence[Term]) -> list[Term]:
    """Terms whose name came before with their number behind it."""
    seen: Counter[str] = Counter()
    apart = []
    for term in terms:
        seen[term.name] += 1
        apart.append(term if seen[term.name] == 1 else replace(term, name=f"{term.name} {seen[term.name]}"))
    return apart


def score(
    terms: Sequence[Term],
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    sample_ids: Sequence[int],
) -> Scores:
    """The scores of responses to prompts from data rows; the sample ids are for messages.

    Rewards are not asked about no response. Some functions with TRL's signature want tokens: a field `completion_ids`
    of each row, as any other column. Raises ValueError, one line with the reward and the sample, where a reward raises,
    or returns anything but a finite number for each response.
    """
    assert len({term.name for term in terms}) == len(terms), f"terms of one name: {[term.name for term in terms]}"
    by_term = {term.name: _scores_of(term, prompts, responses, rows, sample_ids) if responses else [] for term in terms}
    total = [sum(term.weight * by_term[term.name][i] for term in terms) for i in range(len(responses))]
    return Scores(total, by_term)


def several(by_term: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    """What to tell of the terms of a sum: nothing where there is one, whose scores are the total but for its weight."""
    return by_term if len(by_term) > 1 else {}


def _load(name: str, settings: dict[str, Any], place: str) -> Reward:
    if name in REWARDS:
        function = REWARDS[name]
        _check_settings(name, function, settings, place)
        try:
            function([], [], [], **settings)  # so that a wrong value is found before the first rollout
        except ValueError as error:
            raise ValueError(f"{place} ({name}): {error}") from None
        return partial(function, **settings)
    if ":" not in name:
        raise ValueError(
            f"{place}: no reward {name!r}: take one of {', '.join(REWARDS)}, FILE.py:FUNCTION or trl:FUNCTION"
        )
    function, settings = load_function(name, place, settings)
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{place}: {name} is a coroutine, which a reward cannot be: let it return its scores")
    parameters = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in parameters}
    if unknown := sorted(set(settings) - names):
        raise ValueError(f"{place}: {name} takes no {unknown[0]!r}, only {', '.join(sorted(names))}")
    if names >= OURS:
        return partial(_call_ours, function=function, settings=settings)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if "completions" not in names and not takes_any:
        raise ValueError(
            f"{place}: {name} takes neither (prompts, responses, rows) nor, as TRL's, (prompts, completions, ...)"
        )
    return partial(
        _call_as_trl,
        function=function,
        settings=settings,
        wanted=None if takes_any else frozenset(names),
        always_messages=name.startswith(TRL),
    )


def _check_settings(name: str, function: Callable[..., Any], settings: Mapping[str, Any], place: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    known = {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    for setting, value in settings.items():
        if setting not in known:
            raise ValueError(f"{place}: {name} has no setting {setting!r}, only {', '.join(known)}")
        try:
            TypeAdapter(get_type_hints(function)[setting]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"{place}.{setting}={value!r}: {error.errors()[0]['msg']}") from None
    for setting, parameter in known.items():
        if parameter.default is parameter.empty and setting not in settings:
            raise ValueError(f"{place}: {name} needs {setting}: set it")


def _call_ours(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    function: Callable[..., Any],
    settings: Mapping[str, Any],
) -> Any:
    """A function of the user's, with copies that it may change."""
    return function(copy.deepcopy(list(prompts)), list(responses), copy.deepcopy(list(rows)), **settings)


def _call_as_trl(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    *,
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    wanted: frozenset[str] | None,
    always_messages: bool,
) -> Any:
    """A function with the signature of TRL's trainers: completions, and each field of the rows as a list.

    A completion is a text where its prompt is one, else a list of one message, which TRL's own rewards always take.
    """
    completions = [
        response if isinstance(prompt, str) and not always_messages else [{"role": "assistant", "content": response}]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    given: dict[str, Any] = {"prompts": list(prompts), "completions": completions}
    fields = dict.fromkeys(field for row in rows for field in row if field not in COLUMNS_OF_ITS_OWN)
    given |= {field: [row.get(field) for row in rows] for field in fields}
    if wanted is not None:
        given = {name: value for name, value in given.items() if name in wanted}
    return function(**copy.deepcopy(given), **settings)


def _scores_of(
    term: Term,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    sample_ids: Sequence[int],
) -> list[float]:
    def sample(number: int) -> str:
        text = " ".join(responses[number].split())
        excerpt = text if len(text) <= EXCERPT_CHARS else f"{text[:EXCERPT_CHARS]}..."
        return f"sample {sample_ids[number]} ({excerpt!r})"

    try:
        returned = term.reward(prompts, responses, rows)
    except (Exception, SystemExit) as error:
        number, raised = _culprit(term.reward, prompts, responses, rows, error)
        where = "the batch" if number is None else sample(number)
        raise ValueError(f"reward {term.name} failed on {where}: {_described(raised)}") from error
    try:
        scores = list(returned)
    except TypeError:
        raise ValueError(
            f"reward {term.name} returned {type(returned).__name__}, not a list of {len(responses)} numbers"
        ) from None
    if len(scores) != len(responses):
        raise ValueError(
            f"reward {term.name} returned {len(scores)} scores for {len(responses)} responses, the first of them "
            f"{sample(0)}: return one for each"
        )
    for number, value in enumerate(scores):
        if not isinstance(value, Real) or not math.isfinite(value):
            shown = value if value is None or isinstance(value, Real) else f"{value!r:.40} ({type(value).__name__})"
            raise ValueError(f"reward {term.name} returned {shown} for {sample(number)}: return a finite number")
    return [float(value) for value in scores]


def _culprit(
    reward: Reward,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    error: BaseException,
) -> tuple[int | None, BaseException]:
    """The first sample that a reward fails on alone and how, or None with the batch's error where it fails on none."""
    for number in range(len(responses)):
        one = slice(number, number + 1)
        try:
            reward(prompts[one], responses[one], rows[one])
        except (Exception, SystemExit) as raised:
            return number, raised
    return None, error


def _described(error: BaseException) -> str:
    """An error in one line, with the line of code that raised it unless it is about the row."""
    if isinstance(error, RowError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}:{frame.lineno})"
