"""Rewards by name -> the score of each response: a weighted sum, checked number by number.

A reward is one of REWARDS, a function of the user's, one of TRL's, or a trained reward model (`model`). A reward that
fails is reported in one line, with the sample that it failed on.
"""

from __future__ import annotations

import copy
import inspect
import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any, Protocol, get_type_hints

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerFast

from llmtrain.config.rl import is_reward_model
from llmtrain.data.formats.prompts import Prompt as PromptRow
from llmtrain.rewards.functions import REWARDS, Prompt, Reward, Row, RowError
from llmtrain.rewards.user_function import TRL, load_function
from llmtrain.system.files import one_line

EXCERPT_CHARS = 60
OURS = {"prompts", "responses", "rows"}
TRL_COLUMNS = {"prompt", "prompts", "completion", "completions"}  # given by the caller, not by the row


@dataclass(frozen=True)
class WeightedReward:
    """One reward of the weighted sum."""

    name: str  # unique among the rewards of a sum
    weight: float
    function: Reward
    facts: Mapping[str, Any] = field(default_factory=dict)  # what decides its scores: its code, its settings


@dataclass(frozen=True)
class Scores:
    """The score of each response, and what each reward gave it before its weight."""

    total: list[float]
    by_reward: dict[str, list[float]]


class Response(Protocol):
    """A sampled response."""

    @property
    def response_ids(self) -> Sequence[int]: ...
    @property
    def stopped(self) -> bool: ...  # by a stop token, the last of `response_ids`


def load_rewards(specs: Sequence[str | Mapping[str, Any]], key: str = "rollout.rewards") -> list[WeightedReward]:
    """Rewards from a configuration: names, or `{name, weight, SETTING: VALUE, ...}`; the default weight is 1.

    A name is one of REWARDS, `FILE.py:FUNCTION` or `trl:FUNCTION`. A function takes (prompts, responses, rows) or, as
    TRL's do, (prompts, completions, COLUMN, ...); settings are keywords. Reward models are skipped: `model` loads them.
    Raises ValueError, naming the place under `key`, for a wrong name, weight or setting.
    """
    rewards: list[WeightedReward] = []
    for number, spec in enumerate(specs):
        place = f"{key}[{number}]"
        if is_reward_model(spec):
            continue
        settings = {"name": spec} if isinstance(spec, str) else dict(spec)
        name, weight = settings.pop("name", None), reward_weight(settings, place)
        settings.pop("weight", None)
        if not isinstance(name, str):
            raise ValueError(f"{place}: no name: give it the name of a reward, one of {', '.join(REWARDS)}")
        function, code = _load(name, settings, place)
        rewards.append(WeightedReward(name, weight, function, {"code": code, "weight": weight, "settings": settings}))
    return with_unique_names(rewards)


def reward_weight(spec: Mapping[str, Any], place: str) -> float:
    """The weight in a reward's configuration, by default 1. Raises ValueError if it is not a finite number."""
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ValueError(f"{place}.weight={weight!r}: must be a finite number")
    return float(weight)


def with_unique_names(rewards: Sequence[WeightedReward]) -> list[WeightedReward]:
    """The rewards, a repeated name with its number: "regex", "regex 2"."""
    seen: Counter[str] = Counter()
    renamed = []
    for reward in rewards:
        seen[reward.name] += 1
        number = seen[reward.name]
        renamed.append(reward if number == 1 else replace(reward, name=f"{reward.name} {number}"))
    return renamed


def score_responses(
    rewards: Sequence[WeightedReward],
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[PromptRow],
    responses: Sequence[Response],
    sample_ids: Sequence[int],
) -> Scores:
    """The scores of sampled responses, as text. Raises ValueError naming the sample at fault."""
    texts = [response_text(response, tokenizer) for response in responses]
    messages: list[Prompt] = [prompt.messages for prompt in prompts]
    return score(rewards, messages, texts, [prompt.row for prompt in prompts], sample_ids)


def response_text(response: Response, tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of a response without its stop token; other special tokens are shown, so that none goes unnoticed.

    "yes<|im_start|>user more<|im_end|>", stopped by <|im_end|>, is "yes<|im_start|>user more".
    """
    ids = list(response.response_ids)[: -1 if response.stopped else None]
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def score(
    rewards: Sequence[WeightedReward],
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    sample_ids: Sequence[int],
) -> Scores:
    """The scores of responses to prompts from data rows; sample ids are for error messages.

    Without responses no reward is called. Some functions with TRL's signature take tokens: they get a field
    `completion_ids` of the rows, like any other column. Raises ValueError, one line with the reward and the sample, if
    a reward raises, or returns anything but a finite number for each response.
    """
    names = [reward.name for reward in rewards]
    assert len(set(names)) == len(names), f"rewards of one name: {names}"
    by_reward: dict[str, list[float]] = {name: [] for name in names}
    if responses:
        by_reward = {reward.name: _scores_of(reward, prompts, responses, rows, sample_ids) for reward in rewards}
    total = [sum(reward.weight * by_reward[reward.name][i] for reward in rewards) for i in range(len(responses))]
    return Scores(total, by_reward)


def logged_rewards(by_reward: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    """The rewards that are logged one by one: all of several; none if there is one, which is the total."""
    return by_reward if len(by_reward) > 1 else {}


def _load(name: str, settings: dict[str, Any], place: str) -> tuple[Reward, Mapping[str, str]]:
    """The reward of a name with its settings, and what says which code it is."""
    if name in REWARDS:
        function = REWARDS[name]
        _check_settings(name, function, settings, place)
        try:
            function([], [], [], **settings)  # finds a wrong value before the first rollout
        except ValueError as error:
            raise ValueError(f"{place} ({name}): {error}") from None
        return partial(function, **settings), {"function": name}
    if ":" not in name:
        raise ValueError(
            f"{place}: no reward {name!r}: take one of {', '.join(REWARDS)}, FILE.py:FUNCTION or trl:FUNCTION"
        )
    function, settings, code = load_function(name, place, settings)
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{place}: {name} is a coroutine: a reward must be a plain function that returns its scores")
    parameters = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in parameters}
    if unknown := sorted(set(settings) - names):
        raise ValueError(f"{place}: {name} takes no {unknown[0]!r}, only {', '.join(sorted(names))}")
    if names >= OURS:
        return partial(_call_ours, function=function, settings=settings), code
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if "completions" not in names and not takes_any:
        raise ValueError(
            f"{place}: {name} takes neither (prompts, responses, rows) nor, as TRL's, (prompts, completions, ...)"
        )
    as_ours = partial(
        _call_as_trl,
        function=function,
        settings=settings,
        wanted=None if takes_any else frozenset(names),
        always_messages=name.startswith(TRL),
    )
    return as_ours, code


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
    """Call a function of the user's with copies, which it may change."""
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
    """Call a function with the signature of TRL's rewards: completions, and each field of the rows as a list.

    A completion is a text if its prompt is one, else a list of one message. TRL's own rewards always take messages.
    """
    completions = [
        response if isinstance(prompt, str) and not always_messages else [{"role": "assistant", "content": response}]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    given: dict[str, Any] = {"prompts": list(prompts), "completions": completions}
    fields = dict.fromkeys(field for row in rows for field in row if field not in TRL_COLUMNS)
    given |= {field: [row.get(field) for row in rows] for field in fields}
    if wanted is not None:
        given = {name: value for name, value in given.items() if name in wanted}
    return function(**copy.deepcopy(given), **settings)


def _scores_of(
    reward: WeightedReward,
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
        returned = reward.function(prompts, responses, rows)
    except (Exception, SystemExit) as error:
        number, raised = _culprit(reward.function, prompts, responses, rows, error)
        where = "the batch" if number is None else sample(number)
        raise ValueError(f"reward {reward.name} failed on {where}: {_described(raised)}") from error
    try:
        scores = list(returned)
    except TypeError:
        raise ValueError(
            f"reward {reward.name} returned {type(returned).__name__}, not a list of {len(responses)} numbers"
        ) from None
    if len(scores) != len(responses):
        raise ValueError(
            f"reward {reward.name} returned {len(scores)} scores for {len(responses)} responses, the first of them "
            f"{sample(0)}: return one for each"
        )
    for number, value in enumerate(scores):
        if not isinstance(value, Real) or not math.isfinite(value):
            shown = value if value is None or isinstance(value, Real) else f"{value!r:.40} ({type(value).__name__})"
            raise ValueError(f"reward {reward.name} returned {shown} for {sample(number)}: return a finite number")
    return [float(value) for value in scores]


def _culprit(
    reward: Reward,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    rows: Sequence[Row],
    error: BaseException,
) -> tuple[int | None, BaseException]:
    """The first sample that a reward fails on alone, and its error; None and the batch's error if there is none."""
    for number in range(len(responses)):
        one = slice(number, number + 1)
        try:
            reward(prompts[one], responses[one], rows[one])
        except (Exception, SystemExit) as raised:
            return number, raised
    return None, error


def _described(error: BaseException) -> str:
    """An error in one line; with the line of code that raised it, unless it is about the row."""
    if isinstance(error, RowError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)} ({frame.filename}:{frame.lineno})"
