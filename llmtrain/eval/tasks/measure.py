"""A task's items -> results, by the kind of the task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmtrain.eval.bias.likelihoods import measured_bias
from llmtrain.eval.tasks.likelihood import Likelihood, Request, likelihoods, request_of
from llmtrain.eval.tasks.results import (
    ACC,
    ACC_NORM,
    BITS_PER_BYTE,
    ENDS,
    NATS,
    NATS_PER_TOKEN,
    ItemResult,
    Measure,
    TaskResult,
)
from llmtrain.eval.tasks.subject import Subject
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.stop_texts import StopTexts
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import (
    AnswerItem,
    AnswerTask,
    BiasTask,
    ChoiceItem,
    ChoiceTask,
    ContinuationItem,
    ContinuationTask,
    Task,
    TextTask,
)

Generate = Callable[[Sequence[Sequence[int]], Sampling], list[Generated] | None]
"""(prompts, how) -> a response to each; None if asked to stop."""
Done = Callable[[int], None]
"""Gets the number of items that are done since the last call."""


@dataclass(frozen=True)
class Asking:
    """How answers are generated."""

    generate: Generate
    stop_ids: tuple[int, ...]
    max_new_tokens: int | None = None  # None: as many as the task has
    chat: bool = False  # prompts go through the chat template


@dataclass(frozen=True)
class Watch:
    """What a caller hears while a task is measured."""

    done: Done = lambda count: None
    should_stop: Callable[[], bool] = lambda: False


def measure(subject: Subject, task_rows: TaskRows, asking: Asking, watch: Watch = Watch()) -> TaskResult | None:
    """The results of a task; None if asked to stop. Raises ValueError for an item that the model cannot be given."""
    match task_rows.task:
        case ChoiceTask():
            return _choices(subject, task_rows, watch)
        case ContinuationTask():
            return _continuations(subject, task_rows, watch)
        case TextTask():
            return _texts(subject, task_rows, watch)
        case BiasTask() as task:
            return measured_bias(subject, task, task_rows, watch.done, watch.should_stop)
        case AnswerTask() as task:
            return _answers(subject, task, task_rows, asking, watch)


def measures_of(task: Task) -> list[Measure]:
    """What is measured of a task; a score of answers is a mean until its values are known to be 0 and 1."""
    match task:
        case ChoiceTask():
            return [ACC, ACC_NORM]
        case ContinuationTask():
            return [ACC, NATS]
        case TextTask():
            return [BITS_PER_BYTE, NATS_PER_TOKEN]
        case BiasTask():
            return [replace(measure, is_partial=True) for measure in task.measures]
        case AnswerTask():
            return [*(Measure(name, True, "mean") for name in task.scores), ENDS]


def _choices(subject: Subject, task_rows: TaskRows, watch: Watch) -> TaskResult | None:
    """acc: the choice of the highest logprob; acc_norm: of the highest per character. Ties go to the first."""
    before = task_rows.example_text()
    groups = []
    for row in task_rows.rows:
        assert isinstance(row.item, ChoiceItem)
        pairs = zip(row.item.contexts, row.item.continuations, strict=True)
        groups.append([request_of(subject, before + context, continuation) for context, continuation in pairs])
    found = likelihoods(subject, groups, watch.done, watch.should_stop)
    if found is None:
        return None
    items = []
    for row, of_choices in zip(task_rows.rows, found, strict=True):
        assert isinstance(row.item, ChoiceItem)
        logprobs = [each.logprob for each in of_choices]
        rates = [logprob / length for logprob, length in zip(logprobs, row.item.lengths, strict=True)]
        gold = row.item.gold
        values = {ACC.name: float(_best(logprobs) == gold), ACC_NORM.name: float(_best(rates) == gold)}
        details = {"gold": gold, "logprobs": [round(each, 6) for each in logprobs]}
        items.append(ItemResult(task_rows.task.name, row.key, row.where, values, details))
    return _result(
        task_rows, measures_of(task_rows.task), items, notes=_cut_notes([each for group in found for each in group])
    )


def _continuations(subject: Subject, task_rows: TaskRows, watch: Watch) -> TaskResult | None:
    """acc: every token of the continuation is the likeliest; nats: its loss."""
    before = task_rows.example_text()
    groups = []
    for row in task_rows.rows:
        assert isinstance(row.item, ContinuationItem)
        groups.append([request_of(subject, before + row.item.context, row.item.continuation)])
    found = likelihoods(subject, groups, watch.done, watch.should_stop)
    if found is None:
        return None
    items = []
    for row, (one,) in zip(task_rows.rows, found, strict=True):
        values = {ACC.name: float(one.is_greedy), NATS.name: -one.logprob}
        items.append(ItemResult(task_rows.task.name, row.key, row.where, values, {"tokens": one.num_tokens}))
    return _result(task_rows, measures_of(task_rows.task), items, notes=_cut_notes([one for (one,) in found]))


def _texts(subject: Subject, task_rows: TaskRows, watch: Watch) -> TaskResult | None:
    """The loss of each text, in windows of the model's positions; the last one reaches back, so as to be full."""
    groups = [_windows(subject, str(row.item)) for row in task_rows.rows]
    found = likelihoods(subject, groups, watch.done, watch.should_stop)
    if found is None:
        return None
    items = []
    for row, windows in zip(task_rows.rows, found, strict=True):
        nats = -math.fsum(each.logprob for each in windows)
        values = {
            BITS_PER_BYTE.name: nats / math.log(2),
            NATS_PER_TOKEN.name: nats,
            "bytes": float(len(str(row.item).encode(errors="surrogatepass"))),
            "tokens": float(sum(each.num_tokens for each in windows)),
        }
        items.append(ItemResult(task_rows.task.name, row.key, row.where, values))
    return _result(task_rows, measures_of(task_rows.task), items)


def _windows(subject: Subject, text: str) -> list[Request]:
    """The tokens of a text in windows, each with what it continues."""
    ids = [subject.first_id, *subject.tokenizer.encode(text, add_special_tokens=False)]
    size = subject.max_tokens
    windows = []
    for start in range(1, len(ids), size):
        end = min(start + size, len(ids))
        windows.append(Request(ids[max(0, end - size - 1) : start], ids[start:end]))
    return windows


def _answers(
    subject: Subject, task: AnswerTask, task_rows: TaskRows, asking: Asking, watch: Watch
) -> TaskResult | None:
    """Greedy answers, cut at the task's first stop text, and its scores of them."""
    max_new_tokens = asking.max_new_tokens or task.max_new_tokens
    room = subject.max_tokens - max_new_tokens
    if room < 1:
        raise ValueError(
            f"{task.name}: answers of {max_new_tokens:,} tokens leave no room for a prompt in the model's "
            f"{subject.max_tokens:,} positions: lower --max-new-tokens"
        )
    before = task_rows.example_text()
    prompts = [_prompt(subject, before, row, asking.chat) for row in task_rows.rows]
    stop_texts = StopTexts(task.stop, subject.decoded) if task.stop else None
    sampling = Sampling(max_new_tokens, temperature=0, stop_ids=asking.stop_ids, stop_texts=stop_texts)
    responses = asking.generate([prompt[-room:] for prompt in prompts], sampling)
    if responses is None or watch.should_stop():
        return None
    texts, stopped = [], []
    for response in responses:
        text = subject.decoded(response.response_ids)
        texts.append(task.cut(text))
        stopped.append(response.stopped or texts[-1] != text)
    watch.done(len(texts))
    asked = [row.item.prompt for row in task_rows.rows if isinstance(row.item, AnswerItem)]
    fields = [row.fields for row in task_rows.rows]
    scores = {name: score(asked, texts, fields) for name, score in task.scores.items()}
    for name, values in scores.items():
        if len(values) != len(texts) or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{task.name}: the score {name} does not return a finite number for each response")
    items = [
        ItemResult(
            task.name,
            row.key,
            row.where,
            {
                **{name: float(values[i]) for name, values in scores.items()},
                ENDS.name: float(stopped[i]),
                "tokens": float(len(responses[i].response_ids)),
            },
            {"response": texts[i]},
        )
        for i, row in enumerate(task_rows.rows)
    ]
    measures = [
        replace(each, unit="share") if all(value in (0, 1) for value in scores.get(each.name, [])) else each
        for each in measures_of(task)
    ]
    cut = sum(len(prompt) > room for prompt in prompts)
    notes = [f"{cut} prompts lost their beginning, as the model has too few positions"] if cut else []
    facts: dict[str, object] = {"max_new_tokens": max_new_tokens, "chat": asking.chat}
    return _result(task_rows, measures, items, facts, notes)


def _prompt(subject: Subject, before: str, row: TaskRow[object], chat: bool) -> list[int]:
    assert isinstance(row.item, AnswerItem)
    if not chat:
        return subject.encoded(before + row.item.prompt)
    from llmtrain.data.rendering import prompt_ids

    return prompt_ids(subject.tokenizer, [{"role": "user", "content": before + row.item.prompt}])


def _result(
    task_rows: TaskRows,
    measures: Sequence[Measure],
    items: Sequence[ItemResult],
    facts: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
) -> TaskResult:
    task = task_rows.task
    settings = {"source": task.source, "shots": len(task_rows.shots), "data": task_rows.path, **(facts or {})}
    return TaskResult(task.name, measures, items, settings, notes)


def _cut_notes(found: Sequence[Likelihood]) -> list[str]:
    cut = sum(each.num_cut > 0 for each in found)
    return [f"{cut} contexts lost their beginning, as the model has too few positions"] if cut else []


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
