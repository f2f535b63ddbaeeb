"""What each step of `data.clean` would drop, alone and after the steps before it, with examples: before it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmtrain.config.data import CleanConfig
from llmtrain.data.quality.items import Item
from llmtrain.data.sources.clean import alpha_fraction, cleaning_steps, line_repeat_fraction
from llmtrain.data.sources.text import Document

USUAL: dict[str, object] = {
    "min_chars": 200,
    "max_chars": 100_000,
    "min_alpha_fraction": 0.6,
    "max_line_repeat_fraction": 0.3,
    "exact_dedup": True,
    "near_dedup": 0.8,
}
"""Option -> the value that is tried if the configuration sets none."""
MOST_SHOWN = 4
MEASURES: dict[str, Callable[[Document], str]] = {
    "min_chars": lambda document: f"{document.num_chars:,} characters",
    "max_chars": lambda document: f"{document.num_chars:,} characters",
    "min_alpha_fraction": lambda document: f"{alpha_fraction(document):.2f} of it letters",
    "max_line_repeat_fraction": lambda document: f"{line_repeat_fraction(document):.2f} of its lines repeat",
}
"""Option -> why it drops a document."""


@dataclass
class Step:
    """One step."""

    name: str  # of the option
    value: object
    is_set: bool  # by the configuration; else the value is a usual one
    num_alone: int = 0  # dropped if it were the only step
    num_in_turn: int = 0  # dropped of what the steps before it leave; 0 if it is not set
    bytes_alone: int = 0
    examples: list[tuple[Item, str]] = field(default_factory=list)  # with what the step measured
    fault: str = ""  # why it cannot be tried


@dataclass(frozen=True)
class Cleaning:
    """What cleaning would do to the sample."""

    steps: Sequence[Step]
    num_items: int
    num_kept: int  # by the steps that are set
    applies: bool  # the recipe has these options


def cleaning(
    items: Sequence[Item], config: CleanConfig | None, against: Sequence[str], cache_dir: str | None
) -> Cleaning:
    """Try every step on the items, in order. `config` None: no recipe with `data.clean` is given."""
    given = (config or CleanConfig()).model_dump(exclude_defaults=True)
    values = {**USUAL, **({"decontaminate": list(against)} if against else {})}
    steps, tried = [], {}
    for name in (*USUAL, "decontaminate"):
        value = given.get(name, values.get(name))
        if value is None:
            continue
        step = Step(name, value, name in given)
        steps.append(step)
        options = {name: value}
        if name == "decontaminate" and "decontaminate_ngram" in given:
            options["decontaminate_ngram"] = given["decontaminate_ngram"]
        try:
            tried[name] = cleaning_steps(CleanConfig.model_validate(options), cache_dir)[name]
        except ValueError as error:
            step.fault = str(error)
    in_turn = cleaning_steps(CleanConfig.model_validate(given), cache_dir) if given and not _faulty(steps) else {}
    num_kept = 0
    for item in items:
        document = Document(item.text, item.where, item.num_bytes)
        dropped_by = next((name for name, drops in in_turn.items() if drops(document)), None)
        num_kept += dropped_by is None
        for step in steps:
            step.num_in_turn += step.name == dropped_by
            if step.name in tried and tried[step.name](document):
                step.num_alone += 1
                step.bytes_alone += item.num_bytes
                if len(step.examples) < MOST_SHOWN:
                    measure = MEASURES.get(step.name)
                    step.examples.append((item, measure(document) if measure is not None else ""))
    return Cleaning(steps, len(items), num_kept, config is not None)


def _faulty(steps: Sequence[Step]) -> bool:
    return any(step.is_set and step.fault for step in steps)
