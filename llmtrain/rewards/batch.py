"""What rewards score at once, the weighted rewards, and the scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerState

from llmtrain.rewards.row import Prompt, Row, RowError


@dataclass(frozen=True)
class Logged:
    """What rewards log besides their scores."""

    metrics: list[tuple[str, float]] = field(default_factory=list)  # names and values; the log has each name's mean
    columns: dict[str, list[Any]] = field(default_factory=dict)  # values of the samples, in their order

    def log_metric(self, name: str, value: float) -> None:
        """TRL's `log_metric`."""
        self.metrics.append((str(name), float(value)))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's `log_extra`."""
        self.columns.setdefault(str(column), []).extend(values)

    def by_sample(self, num_samples: int) -> list[dict[str, Any]]:
        """The columns as what each sample has; a column with too few or too many values has none."""
        whole = {name: values for name, values in self.columns.items() if len(values) == num_samples}
        return [{name: values[number] for name, values in whole.items()} for number in range(num_samples)]


@dataclass(frozen=True)
class ScoreBatch:
    """Responses to prompts from data rows. Sample ids are for error messages."""

    prompts: Sequence[Prompt]
    responses: Sequence[str]
    rows: Sequence[Row]
    sample_ids: Sequence[int]
    completion_ids: Sequence[Sequence[int]] = ()  # the tokens of the responses, where there are any
    state: TrainerState = field(default_factory=TrainerState)
    logged: Logged = field(default_factory=Logged)

    def __len__(self) -> int:
        return len(self.responses)

    def only(self, number: int) -> ScoreBatch:
        """One of the samples, alone; what is logged of it is not kept."""
        one = slice(number, number + 1)
        return ScoreBatch(
            self.prompts[one],
            self.responses[one],
            self.rows[one],
            self.sample_ids[one],
            self.completion_ids[one],
            self.state,
        )


Scorer = Callable[[ScoreBatch], Any]
"""The scores of a batch, one for each response, or None to abstain; or an awaitable of them."""


@dataclass(frozen=True)
class WeightedReward:
    """One reward of the weighted sum."""

    name: str  # unique among the rewards of a sum
    weight: float
    function: Scorer
    facts: Mapping[str, Any] = field(default_factory=dict)  # what decides its scores: its code, its settings
    is_ours: bool = True  # not a function of the user's or TRL's, which runs in a thread, with a limit of time
    is_async: bool = False


@dataclass(frozen=True)
class Scores:
    """The score of each response, and what each reward gave it before its weight; None: it abstained."""

    total: list[float]  # of the rewards that did not abstain; 0 if all did
    by_reward: dict[str, list[float | None]]
    failed: dict[str, int] = field(default_factory=dict)  # samples without a score because the reward failed
    logged: Logged = field(default_factory=Logged)


def of_rows(function: Callable[..., Any], settings: Mapping[str, Any] | None = None, *, logs: bool = False) -> Scorer:
    """A function of (prompts, responses, rows) as a scorer; one that `logs` gets `log_metric` too."""

    def scores(batch: ScoreBatch) -> Any:
        given = {**(settings or {}), **({"log_metric": batch.logged.log_metric} if logs else {})}
        return function(batch.prompts, batch.responses, batch.rows, **given)

    return scores


def of_copies(function: Callable[..., Any], settings: Mapping[str, Any], *, logs: bool = False) -> Scorer:
    """A function of the user's, with copies, which it may change."""

    def copied(prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row], **given: Any) -> Any:
        return function([_copied(prompt) for prompt in prompts], list(responses), copy.deepcopy(list(rows)), **given)

    return of_rows(copied, settings, logs=logs)


TRL_GIVES = {"prompt", "prompts", "completion", "completions", "completion_ids"}  # fields of rows that are not passed


def of_trl(
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    wanted: frozenset[str] | None,
    needed: Set[str] = frozenset(),
    *,
    texts: bool,
) -> Scorer:
    """A function with the signature of TRL's rewards, which gets each field of the rows as a list.

    A completion is a text if its prompt is one and it takes `texts`, else a list of one message. `wanted`: the
    arguments that it takes; None: any. `needed`: those without which it cannot be called.
    """

    def scores(batch: ScoreBatch) -> Any:
        fields = dict.fromkeys(name for row in batch.rows for name in row if name not in TRL_GIVES)
        given: dict[str, Any] = {
            **{name: [copy.deepcopy(row.get(name)) for row in batch.rows] for name in fields},
            "prompts": [_copied(prompt) for prompt in batch.prompts],
            "completions": [
                text if texts and isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(batch.prompts, batch.responses, strict=True)
            ],
            "completion_ids": [list(ids) for ids in batch.completion_ids],
            "trainer_state": batch.state,
            "log_extra": batch.logged.log_extra,
            "log_metric": batch.logged.log_metric,
        }
        if missing := sorted(needed - given.keys() - settings.keys()):
            names = ", ".join(map(repr, fields)) or "no field that it may take"
            raise RowError(f"it takes {missing[0]!r}, which no row has, only {names}")
        return function(**{name: given[name] for name in given if wanted is None or name in wanted}, **settings)

    return scores


def _copied(prompt: Prompt) -> Prompt:
    """A prompt as its function may change it: a text, or a list of messages."""
    return prompt if isinstance(prompt, str) else [copy.deepcopy(dict(message)) for message in prompt]
