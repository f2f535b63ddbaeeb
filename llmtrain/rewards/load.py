"""Rewards by name, from a configuration: one of ours, a function of the user's, or one of TRL's."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from llmtrain.config.rl import SandboxMode, is_reward_model
from llmtrain.protocols import Report
from llmtrain.rewards.batch import Scorer, WeightedReward, of_copies, of_rows, of_trl
from llmtrain.rewards.functions import REWARDS
from llmtrain.rewards.jail import find_jail
from llmtrain.rewards.user_function import TRL, load_function
from llmtrain.system.finite import is_number

OURS = {"prompts", "responses", "rows"}
LOG_METRIC = "log_metric"  # given by the caller, not by the configuration
NOT_SETTINGS = {LOG_METRIC, "sandbox"}  # the second is rollout.sandbox
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
TASK = "task:"
KINDS = f"one of {', '.join(REWARDS)}, model, task:TASK, FILE.py:FUNCTION or trl:FUNCTION"
"""What a reward may be called, for an error."""

TaskReward = Callable[[str, str], tuple[Callable[..., list[float]], Mapping[str, str]]]
"""(name of a task, key) -> its reward, and what says which code it is; raises ValueError, naming the key."""


def load_rewards(
    specs: Sequence[str | Mapping[str, Any]],
    *,
    sandbox: SandboxMode = "auto",
    report: Report = lambda line: None,
    task_reward: TaskReward | None = None,
) -> list[WeightedReward]:
    """Rewards from a configuration: names, or `{name, weight, SETTING: VALUE, ...}`; the default weight is 1.

    A name is one of REWARDS, `task:TASK` (which `task_reward` finds), `FILE.py:FUNCTION` or `trl:FUNCTION`. A function
    takes (prompts, responses, rows) or, as TRL's do, (prompts, completions, COLUMN, ...); settings are keywords. Reward
    models are skipped: `model` loads them. Code runs in `sandbox`, which is reported. Raises ValueError, naming the
    place, for a wrong name, weight or setting.
    """
    rewards: list[WeightedReward] = []
    for number, spec in enumerate(specs):
        place = f"rollout.rewards[{number}]"
        if is_reward_model(spec):
            continue
        settings = {"name": spec} if isinstance(spec, str) else dict(spec)
        name, weight = settings.pop("name", None), reward_weight(settings, place)
        settings.pop("weight", None)
        if not isinstance(name, str):
            raise ValueError(f"{place}: no name: give it the name of a reward, {KINDS}")
        facts: dict[str, Any] = {"weight": weight, "settings": settings}
        if name in REWARDS:
            scorer = _ours(name, REWARDS[name], settings, place, sandbox, report)
            rewards.append(WeightedReward(name, weight, scorer, {"code": {"function": name}, **facts}))
        elif name.startswith(TASK) and task_reward is not None:
            task = name.removeprefix(TASK)
            function, code = task_reward(task, place)
            scorer = _ours(name, function, settings, place, sandbox, report)
            facts = {"code": {"task": task, **code}, **facts}
            rewards.append(WeightedReward(name, weight, scorer, facts, is_ours=not task.endswith(".py")))
        else:
            scorer, code, is_async = _loaded(name, settings, place)
            facts = {"code": code, **facts}
            rewards.append(WeightedReward(name, weight, scorer, facts, is_ours=False, is_async=is_async))
    return with_unique_names(rewards)


def reward_weight(spec: Mapping[str, Any], place: str) -> float:
    """The weight in a reward's configuration, by default 1. Raises ValueError if it is not a finite number."""
    weight = spec.get("weight", 1.0)
    if not is_number(weight):
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


def _ours(
    name: str,
    function: Callable[..., list[float]],
    settings: dict[str, Any],
    place: str,
    sandbox: SandboxMode,
    report: Report,
) -> Scorer:
    """One of REWARDS, or the score of a task, with its settings."""
    _check_settings(name, function, settings, place)
    takes = inspect.signature(function).parameters
    given = {**settings, "sandbox": sandbox} if "sandbox" in takes else settings
    try:
        function([], [], [], **given)  # finds a wrong value before the first rollout
    except ValueError as error:
        raise ValueError(f"{place} ({name}): {error}") from None
    if "sandbox" in takes:
        report(f"{place}: {name} runs code in {find_jail(sandbox).description}")
    return of_rows(function, given, logs=LOG_METRIC in takes)


def _loaded(name: str, settings: dict[str, Any], place: str) -> tuple[Scorer, Mapping[str, str], bool]:
    """A function of the user's or TRL's with its settings, what says which code it is, and whether it is async."""
    if ":" not in name:
        raise ValueError(f"{place}: no reward {name!r}: take {KINDS}")
    function, settings, code = load_function(name, place, settings)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    parameters = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in parameters}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if (unknown := sorted(set(settings) - names)) and not takes_any:
        raise ValueError(f"{place}: {name} takes no {unknown[0]!r}, only {', '.join(sorted(names))}")
    if names >= OURS:
        return of_copies(function, settings, logs=LOG_METRIC in names), code, is_async
    if not names & {"completions", "completion_ids"} and not takes_any:
        raise ValueError(
            f"{place}: {name} takes neither (prompts, responses, rows) nor, as TRL's, (prompts, completions, ...)"
        )
    wanted = None if takes_any else frozenset(names)
    # Of the function itself: a decorator that wraps another may give it arguments that no row has.
    own = inspect.signature(function, follow_wrapped=False).parameters.values()
    needed = {each.name for each in own if each.default is each.empty and each.kind in NAMED}
    return of_trl(function, settings, wanted, needed, texts=not name.startswith(TRL)), code, is_async


def _check_settings(name: str, function: Callable[..., Any], settings: Mapping[str, Any], place: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    known = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in NOT_SETTINGS
    }
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
