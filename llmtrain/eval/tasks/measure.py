"""A task's items -> what became of each -> the results of all of them, by the kind of the task.

item_results    of any of the items, on any rank
result_of       measures, facts and notes of all items together
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from llmtrain.data.rendering import prompt_ids
from llmtrain.eval.tasks.bias import bias_result, bias_results
from llmtrain.eval.tasks.likelihood import Likelihood, Request, chat_request_of, likelihoods, request_of
from llmtrain.eval.tasks.results import (
    ACC,
    ACC_NORM,
    BITS_PER_BYTE,
    CHANCE,
    CHOICE_ACC,
    ENDS,
    NATS,
    NATS_PER_TOKEN,
    ItemResult,
    Measure,
    TaskResult,
)
from llmtrain.eval.tasks.subject import Subject
from llmtrain.models.stop_texts import StopTexts, text_before
from llmtrain.models.stops import Stops
from llmtrain.rewards.row import RowError
from llmtrain.rewards.score import listed_scores
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.system.files import error_and_place
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import (
    AnswerItem,
    AnswerTask,
    BiasTask,
    ChoiceItem,
    ChoiceTask,
    ContinuationItem,
    ContinuationTask,
    Fields,
    Task,
    TextTask,
)

AS_TEXT = "asked as plain text, not through the chat template: the model goes on with a text"
ASKED = "asked"  # detail of an item: its own prompt, without examples
CUT = "cut"  # detail of an item: contexts or prompts that lost their beginning; without it none

Generate = Callable[[Sequence[Sequence[int]], Sampling], list[Generated] | None]
"""(prompts, how) -> a response to each; None if asked to stop."""
Done = Callable[[int], None]
"""Gets the number of items that are done since the last call."""


@dataclass(frozen=True)
class Asking:
    """How answers are generated."""

    generate: Generate
    stops: Stops
    max_new_tokens: int | None = None  # None: as many as the task has
    chat: bool = False  # questions go through the chat template


@dataclass(frozen=True)
class Watch:
    """What a caller hears while a task is measured."""

    done: Done = lambda count: None
    should_stop: Callable[[], bool] = lambda: False


def measure(subject: Subject, task_rows: TaskRows, asking: Asking, watch: Watch = Watch()) -> TaskResult | None:
    """The results of a task; None if asked to stop. Raises ValueError as `item_results` does."""
    items = item_results(subject, task_rows, asking, watch)
    return None if items is None else result_of(task_rows, asking, items)


def item_results(
    subject: Subject, task_rows: TaskRows, asking: Asking, watch: Watch = Watch()
) -> list[ItemResult] | None:
    """What becomes of each row; None if asked to stop. Raises ValueError for one that the model cannot be given."""
    match task_rows.task:
        case ChoiceTask():
            return _choices(subject, task_rows, asking, watch)
        case ContinuationTask():
            return _continuations(subject, task_rows, watch)
        case TextTask():
            return _texts(subject, task_rows, watch)
        case BiasTask() as task:
            return bias_results(subject, task, task_rows, watch.done, watch.should_stop)
        case AnswerTask() as task:
            return _answers(subject, task, task_rows, asking, watch)


def result_of(task_rows: TaskRows, asking: Asking, items: Sequence[ItemResult]) -> TaskResult:
    """The results of a task from those of all its items, whoever measured which."""
    task = task_rows.task
    measures, what = measures_of(task), "contexts"
    facts: dict[str, object] = {"source": task.source, "shots": len(task_rows.shots), "data": task_rows.path}
    match task:
        case ChoiceTask():
            facts |= {"chat": True} if asking.chat and any(_is_question(row.item) for row in task_rows.rows) else {}
        case BiasTask():
            found = bias_result(task, task_rows, items)
            return replace(found, notes=[*found.notes, AS_TEXT]) if asking.chat else found
        case AnswerTask():
            what = "prompts"
            facts |= {"max_new_tokens": asking.max_new_tokens or task.max_new_tokens, "chat": asking.chat}
            measures = [
                replace(each, unit="share") if all(item.values[each.name] in (0, 1) for item in items) else each
                for each in measures
            ]
    cut = sum(item.details.get(CUT, 0) for item in items)
    notes = [f"{cut} {what} lost their beginning, as the model has too few positions"] if cut else []
    notes += [AS_TEXT] if asking.chat and "chat" not in facts else []
    return TaskResult(task.name, measures, items, facts, notes)


def measures_of(task: Task) -> list[Measure]:
    """What is measured of a task; a score of answers is a mean until its values are known to be 0 and 1."""
    match task:
        case ChoiceTask(has_lengths=has_lengths):
            return [CHOICE_ACC, ACC_NORM] if has_lengths else [CHOICE_ACC]
        case ContinuationTask():
            return [ACC, NATS]
        case TextTask():
            return [BITS_PER_BYTE, NATS_PER_TOKEN]
        case BiasTask():
            return [replace(measure, is_partial=True) for measure in task.measures]
        case AnswerTask():
            return [*(Measure(name, True, "mean") for name in task.scores), ENDS]


def _choices(subject: Subject, task_rows: TaskRows, asking: Asking, watch: Watch) -> list[ItemResult] | None:
    """acc: the choice of the highest logprob; acc_norm: of the highest per character. Ties go to the first.

    If one continuation scores all choices, as of Winogrande, there is no length to divide by.
    """
    before, measures = task_rows.example_text(), measures_of(task_rows.task)
    groups = []
    for row in task_rows.rows:
        assert isinstance(row.item, ChoiceItem)
        request = chat_request_of if asking.chat and _is_question(row.item) else request_of
        pairs = zip(row.item.contexts, row.item.continuations, strict=True)
        groups.append([request(subject, before + context, continuation) for context, continuation in pairs])
    found = likelihoods(subject, groups, watch.done, watch.should_stop)
    if found is None:
        return None
    items = []
    for row, of_choices in zip(task_rows.rows, found, strict=True):
        assert isinstance(row.item, ChoiceItem)
        logprobs = [each.logprob for each in of_choices]
        gold = row.item.gold
        values = {ACC.name: float(_best(logprobs) == gold), CHANCE: 1 / len(logprobs)}
        if ACC_NORM in measures:
            rates = [logprob / length for logprob, length in zip(logprobs, row.item.lengths, strict=True)]
            values[ACC_NORM.name] = float(_best(rates) == gold)
        details = {
            ASKED: row.item.contexts[0] if _is_question(row.item) else list(row.item.contexts),
            "choices": [continuation.strip() for continuation in row.item.continuations],
            "gold": gold,
            "logprobs": [round(each, 6) for each in logprobs],
            **_cut(of_choices),
        }
        items.append(ItemResult(task_rows.task.name, row.key, row.where, values, details))
    return items


def _is_question(item: object) -> bool:
    """Whether choices answer a question, which a chat template can ask: one context for all of them."""
    return isinstance(item, ChoiceItem) and len(set(item.contexts)) == 1


def _continuations(subject: Subject, task_rows: TaskRows, watch: Watch) -> list[ItemResult] | None:
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
        details = {"tokens": one.num_tokens, **_cut([one])}
        items.append(ItemResult(task_rows.task.name, row.key, row.where, values, details))
    return items


def _texts(subject: Subject, task_rows: TaskRows, watch: Watch) -> list[ItemResult] | None:
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
    return items


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
) -> list[ItemResult] | None:
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
    stops = asking.stops
    ends = (*task.stop, *stops.texts)
    sampling = Sampling(max_new_tokens, temperature=0, stop_ids=stops.ids)
    if ends:
        sampling = replace(sampling, stop_texts=StopTexts(ends, subject.decoded))
    responses = asking.generate([prompt[-room:] for prompt in prompts], sampling)
    if responses is None or watch.should_stop():
        return None
    texts, stopped = [], []
    for response in responses:
        text = subject.decoded(response.response_ids)
        texts.append(task.cut(text_before(text, response.stop_text)))
        stopped.append(response.stopped or texts[-1] != text)
    watch.done(len(texts))
    asked = [row.item.prompt for row in task_rows.rows if isinstance(row.item, AnswerItem)]
    fields = [row.fields for row in task_rows.rows]
    scores = {name: _scored(task, name, asked, texts, fields) for name in task.scores}
    return [
        ItemResult(
            task.name,
            row.key,
            row.where,
            {
                **{name: float(values[i]) for name, values in scores.items()},
                ENDS.name: float(stopped[i]),
                "tokens": float(len(responses[i].response_ids)),
            },
            {ASKED: asked[i], "response": texts[i]} | ({CUT: 1} if len(prompts[i]) > room else {}),
        )
        for i, row in enumerate(task_rows.rows)
    ]


def _scored(task: AnswerTask, name: str, prompts: list[str], responses: list[str], rows: list[Fields]) -> list[float]:
    """A task's score of each response. Raises ValueError if it fails, as a user's may, or gives no numbers."""
    try:
        values = listed_scores(task.scores[name](list(prompts), list(responses), rows))
    except RowError as error:
        raise ValueError(f"{task.name}: the score {name} fails: {error}") from error
    except Exception as error:
        raise ValueError(f"{task.name}: the score {name} fails: {error_and_place(error)}") from error
    if len(values) != len(responses):
        raise ValueError(f"{task.name}: the score {name} returns {len(values)} numbers for {len(responses)} responses")
    for value in values:
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{task.name}: the score {name} returns {value!r:.40}: return a finite number")
    return [float(value) for value in values]


def _prompt(subject: Subject, before: str, row: TaskRow[object], chat: bool) -> list[int]:
    assert isinstance(row.item, AnswerItem)
    if not chat:
        return subject.encoded(before + row.item.prompt)
    return prompt_ids(subject.tokenizer, [{"role": "user", "content": before + row.item.prompt}])


def _cut(found: Sequence[Likelihood]) -> dict[str, int]:
    """How many contexts of an item were cut, if any were."""
    cut = sum(each.num_cut > 0 for each in found)
    return {CUT: cut} if cut else {}


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
