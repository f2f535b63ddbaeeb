"""What a run pins, in one place for all recipes: what decides its course and is not in its configuration.

A configuration names model, tokenizer, data and rewards by where they are. A run goes on only if it finds the same
there, and goes on if it finds the same somewhere else: these facts say what it found, by content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 3  # of the facts; a run of another format cannot be judged


@dataclass(frozen=True)
class Facts:
    """What a continued run must find unchanged; every recipe gives all of it, None where it has no such thing."""

    base: Mapping[str, Any]  # weights and configuration of the model that the run starts from
    code: str | None  # the commit of the hub's Python code that the model runs
    tokenizer: Mapping[str, Any]  # vocabulary, special tokens, chat template
    data: Mapping[str, Sequence[str]]  # of each training and held-out source
    packing: Mapping[str, Any]  # how documents become packs, and in which order packs come
    rewards: Sequence[Mapping[str, Any]] | None = None  # code, weights and settings of each
    critic: Mapping[str, Any] | None = None  # what it starts as

    def to_dict(self) -> dict[str, Any]:
        """The facts for `environment.json`."""
        return {"format": FORMAT, **asdict(self)}


CHANGED = {
    "base": ("the base model", "model.path"),
    "code": ("the model's code", "model.revision"),
    "tokenizer": ("the tokenizer or its chat template", "tokenizer.path, data.chat_template"),
    "data": ("the data", "data.train, data.eval"),
    "packing": ("the packing or the order of the data", "the machine or llmtrain's version"),
    "rewards": ("a reward", "rollout.rewards"),
    "critic": ("what the critic starts as", "policy.critic_init"),
}
"""Fact -> what it is in words, and what in the configuration brings it back."""


def refuse_changed(then: Mapping[str, Any] | None, now: Facts, where: str) -> None:
    """Raise ValueError, with what changed and how to bring it back, if a run's facts are no longer those of its start.

    `then`: as `to_dict` gave them; None: an earlier version of llmtrain recorded other facts, or none. `where`: names
    the run.
    """
    if then is None or then.get("format") != FORMAT:
        raise ValueError(
            f"{where} was started by a version of llmtrain that did not record all that decides a run: continue it "
            "with that version, or start another run"
        )
    difference = first_difference(then, now.to_dict())
    if difference is not None:
        key, was, is_now = difference
        what, keys = CHANGED[key.split(".")[0].split("[")[0]]
        raise ValueError(
            f"{where}: {what} changed since this run started ({key} was {was!r} and is {is_now!r} now): bring back "
            f"what it started with ({keys}), or start another run"
        )


def first_difference(
    there: Any, here: Any, leave_out: Sequence[str] = (), key: str = ""
) -> tuple[str, Any, Any] | None:
    """The first dotted key, such as `data.train[0].weight`, of which two trees have other values, and the two values.

    `leave_out`: keys that may differ, elements of lists without their number (`data.train[].path`).
    """
    if without_numbers(key) in leave_out or there == here:
        return None
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = [*here, *(name for name in there if name not in here)]
        pairs = [(f"{key}.{name}" if key else str(name), there.get(name), here.get(name)) for name in names]
    elif _is_list(there) and _is_list(here) and len(there) == len(here):
        pairs = [(f"{key}[{i}]", one, other) for i, (one, other) in enumerate(zip(there, here, strict=True))]
    else:
        return key, there, here
    for inner_key, one, other in pairs:
        inner = first_difference(one, other, leave_out, inner_key)
        if inner is not None:
            return inner
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def without_numbers(key: str) -> str:
    """`data.train[].path` of `data.train[0].path`."""
    return "".join(part if i == 0 else f"[]{part.partition(']')[2]}" for i, part in enumerate(key.split("[")))
