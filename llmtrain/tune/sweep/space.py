"""What a sweep varies: a YAML file of dotted keys to values, checked against the recipe's schema before anything runs.

optim.lr: {log: [1e-5, 1e-3]}                            # a range on a log scale
adapter.dropout: {range: [0, 0.2], step: 0.05}           # an even range, here in steps
optim.warmup_steps: {range: [0, 20]}                     # of whole numbers, as the key's type is
optim.name: [adamw, muon]                                # choices
optim.muon_lr: {log: [0.005, 0.05], when: {optim.name: muon}}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from llmtrain.config.help import type_name, yaml_scalar
from llmtrain.config.nearest import unknown_key
from llmtrain.config.sections import iter_keys
from llmtrain.system.finite import is_number
from llmtrain.system.nearest import nearest
from llmtrain.tune.sweep.target import Target

GRID_POINTS = 3  # of a range in a grid, if it gives neither `points` nor `step`
MAX_GRID = 10_000
FORMS = ("log", "range", "choices")
OPTIONS = ("step", "points", "when")
FORM_HELP = "a list of choices, {log: [low, high]} or {range: [low, high]}"

MEASURE = "it changes what the held-out loss is measured on, so runs could not be compared"
FIXED = {
    "run.seed": "a sweep repeats each setting over seeds with --seeds",
    "run": "the sweep gives each run a separate folder",
    "log": "it changes nothing of what is trained",
    "checkpoint": "it changes nothing of what is trained",
    "eval": MEASURE,
    "tokenizer": MEASURE,
    "data.eval": MEASURE,
    "data.eval_fraction": MEASURE,
    "data.max_seq_len": MEASURE,
    "data.on_long_row": MEASURE,
    "data.loss_on": MEASURE,
    "data.chat_template": MEASURE,
    "data.system_prompt": MEASURE,
    "data.template_kwargs": MEASURE,
    "data.template_date": MEASURE,
    "data.special_tokens_in_text": MEASURE,
    "data.loss_on_thoughts": MEASURE,
    "data.cache_dir": "the runs share it, so that data are prepared once",
}
"""Key or section that may not vary -> why."""
LOSS_SECTIONS = ("preference", "reward", "policy", "rollout")
"""Their keys change what `eval_loss` is, in preference, reward and policy runs."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Dimension:
    """A key that varies: over choices, or from `low` to `high`."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_int: bool = False
    step: float | None = None
    points: int = GRID_POINTS
    when: Mapping[str, Any] = field(default_factory=dict)  # earlier keys, and the value with which this one varies

    @property
    def labels(self) -> list[str]:
        """The choices as text, which a storage can hold whatever they are."""
        return [yaml_scalar(choice) for choice in self.choices]

    def holds(self, values: Values) -> bool:
        """Whether the key varies beside these values of earlier keys."""
        return all(key in values and values[key] == value for key, value in self.when.items())

    def grid(self) -> list[Any]:
        """The values of a grid."""
        if self.choices:
            return list(self.choices)
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self._number(self.low + i * self.step) for i in range(count)]
        shares = [i / (self.points - 1) for i in range(self.points)] if self.points > 1 else [0.5]
        if self.is_log:
            values = [self._number(self.low * (self.high / self.low) ** share) for share in shares]
        else:
            values = [self._number(self.low + share * (self.high - self.low)) for share in shares]
        return list(dict.fromkeys(values))

    def _number(self, value: float) -> float | int:
        return round(value) if self.is_int else float(f"{value:.12g}")

    def __str__(self) -> str:
        when = "".join(f", when {key} is {yaml_scalar(value)}" for key, value in self.when.items())
        if self.choices:
            return f"{self.key}: {', '.join(self.labels)}{when}"
        scale = " on a log scale" if self.is_log else ""
        step = "" if self.step is None else f" in steps of {self.step:g}"
        return f"{self.key}: {self.low:g} to {self.high:g}{scale}{step}{when}"


def check_space(tree: Mapping[str, Any], target: Target, metric: str, name: str) -> list[Dimension]:
    """The dimensions of a space; `name`: of its file, for messages.

    Raises ValueError naming the file and the key, for a type or range that the schema does not take.
    """
    keys = dict(iter_keys(target.schema))
    space: list[Dimension] = []
    for key, given in tree.items():
        try:
            space.append(_dimension(str(key), given, keys, target, metric))
            _check_when(space[-1], space[:-1])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if not any(len(dimension.grid()) > 1 for dimension in space):
        raise ValueError(f"{name}: nothing varies in it: give a key {FORM_HELP} of at least two values")
    return space


def grid_of(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Every combination of a grid, once; a key whose `when` does not hold is left out."""
    seen: set[str] = set()
    for combination in itertools.product(*(dimension.grid() for dimension in space)):
        values: dict[str, Any] = {}
        for dimension, value in zip(space, combination, strict=True):
            if dimension.holds(values):
                values[dimension.key] = value
        if (text := yaml_scalar(values)) not in seen:
            seen.add(text)
            yield values


def grid_size(space: Sequence[Dimension]) -> int:
    """The number of combinations of a grid before any is left out. Raises ValueError if nobody could mean so many."""
    size = math.prod(len(dimension.grid()) for dimension in space)
    if size > MAX_GRID:
        raise ValueError(f"a grid of {size:,} combinations: search with --sampler tpe or random, or give fewer points")
    return size


def _dimension(key: str, given: Any, keys: Mapping[str, FieldInfo], target: Target, metric: str) -> Dimension:
    if key not in keys:
        if any(known.startswith(f"{key}.") for known in keys):
            raise ValueError(f"{key} is a section: name a key of it with dots, as in {key}.{_first(keys, key)}")
        raise ValueError(unknown_key(target.schema, key.split(".")))
    _refuse_fixed(key, metric)
    form, ends, options = _parts(key, given)
    adapter = _adapter(keys[key])
    if form == "choices":
        choices = [
            # A value that the schema reads in its own way: a path where it takes a list of sources.
            value
            if target.refusal({key: value}) is None and not _is_valid(adapter, value)
            else _checked(key, value, adapter, keys[key])
            for value in ends
        ]
        if not choices:
            raise ValueError(f"{key}: the list of choices is empty")
        if len({yaml_scalar(choice) for choice in choices}) < len(choices):
            raise ValueError(f"{key}: {yaml_scalar(list(ends))} has a choice twice")
        return Dimension(key, tuple(choices), when=options.get("when", {}))
    return _range(key, form, ends, options, adapter, keys[key])


def _range(
    key: str, form: str, ends: Sequence[Any], options: Mapping[str, Any], adapter: TypeAdapter[Any], info: FieldInfo
) -> Dimension:
    is_float, is_int = _takes(adapter, (0.5, 1.5, 0.015)), _takes(adapter, (1, 8, 0))
    if not is_float and not is_int:
        raise ValueError(f"{key} takes {type_name(info)}, which has no range: give a list of choices")
    if len(ends) != 2:
        raise ValueError(f"{key}: {form} takes two numbers, [low, high], not {yaml_scalar(list(ends))}")
    low, high = (_number_of(key, _checked(key, end, adapter, info)) for end in ends)
    if low > high:
        raise ValueError(f"{key}: the range [{low:g}, {high:g}] ends before it starts")
    if form == "log" and low <= 0:
        raise ValueError(f"{key}: a log scale starts above 0, not at {low:g}: use range, or a higher low end")
    step, points = options.get("step"), options.get("points", GRID_POINTS)
    if step is not None and (form == "log" or not is_number(step) or float(step) <= 0):
        raise ValueError(f"{key}: step={step} must be above 0, and is for `range` only")
    if not isinstance(points, int) or points < 1:
        raise ValueError(f"{key}: points={points} must be a whole number from 1")
    step = None if step is None else float(step)
    return Dimension(
        key,
        low=low,
        high=high,
        is_log=form == "log",
        is_int=not is_float,
        step=step,
        points=points,
        when=options.get("when", {}),
    )


def _parts(key: str, given: Any) -> tuple[str, Sequence[Any], Mapping[str, Any]]:
    """(form, its list, options) of what a space gives for a key."""
    if isinstance(given, list):
        return "choices", given, {}
    if not isinstance(given, dict):
        raise ValueError(f"{key}: give {FORM_HELP}, not {yaml_scalar(given)}")
    for name in given:
        if name not in (*FORMS, *OPTIONS):
            near = nearest(str(name), (*FORMS, *OPTIONS))
            hint = f"the nearest is {near}" if near is not None else f"known are {', '.join((*FORMS, *OPTIONS))}"
            raise ValueError(f"{key}: unknown {name}: {hint}")
    forms = [form for form in FORMS if form in given]
    if len(forms) != 1:
        raise ValueError(f"{key}: give {FORM_HELP}, not {yaml_scalar(given)}")
    ends = given[forms[0]]
    if not isinstance(ends, list):
        raise ValueError(f"{key}: {forms[0]} takes a list, not {yaml_scalar(ends)}")
    return forms[0], ends, {name: value for name, value in given.items() if name in OPTIONS}


def _refuse_fixed(key: str, metric: str) -> None:
    for fixed, reason in FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise ValueError(f"{key} may not vary: {reason}")
    if metric == "eval_loss" and key.split(".")[0] in LOSS_SECTIONS:
        raise ValueError(
            f"{key} changes what eval_loss is, so runs could not be compared: choose another metric of the "
            "evaluations, as in --maximize eval_accuracy"
        )


def _check_when(dimension: Dimension, earlier: Sequence[Dimension]) -> None:
    if not isinstance(dimension.when, Mapping):
        raise ValueError(f"{dimension.key}: when takes {{key: value}}, not {yaml_scalar(dimension.when)}")
    for key, value in dimension.when.items():
        known = next((other for other in earlier if other.key == key), None)
        if known is None:
            raise ValueError(f"{dimension.key}: when names {key}, which the space does not vary before it")
        if known.choices and value not in known.choices:
            raise ValueError(f"{dimension.key}: when {key} is {yaml_scalar(value)}, which is not one of its choices")


def _adapter(info: FieldInfo) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[(info.annotation, "a key", *info.metadata)])  # type: ignore[arg-type]


def _checked(key: str, value: Any, adapter: TypeAdapter[Any], info: FieldInfo) -> Any:
    """A value as the schema reads it: YAML reads 1e-4 as text. Raises ValueError with what is allowed."""
    try:
        checked = adapter.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}={value!r}: {message[0].lower()}{message[1:]}; it takes {type_name(info)}") from None
    return adapter.dump_python(checked)


def _is_valid(adapter: TypeAdapter[Any], value: Any) -> bool:
    """Whether a key takes a value as its type alone reads it."""
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _takes(adapter: TypeAdapter[Any], examples: Sequence[float]) -> bool:
    """Whether a key takes any of some numbers as numbers."""
    for example in examples:
        try:
            value = adapter.validate_python(example)
        except ValidationError:
            continue
        if not isinstance(value, bool) and isinstance(value, (int, float)):
            return True
    return False


def _number_of(key: str, value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"{key}: {yaml_scalar(value)} is not a number, so not the end of a range")
    return float(value)


def _first(keys: Mapping[str, FieldInfo], section: str) -> str:
    return next(key for key in keys if key.startswith(f"{section}.")).removeprefix(f"{section}.")
