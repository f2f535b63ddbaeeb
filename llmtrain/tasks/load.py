"""Tasks by name: ours, a file of the user's (`my_task.py`, whose TASK it is), or rows of data (`my_rows.jsonl`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llmtrain.data.sources.compressed import COMPRESSIONS
from llmtrain.data.sources.readers import READERS
from llmtrain.rewards.user_function import load_value
from llmtrain.system.nearest import nearest
from llmtrain.tasks.arc import ARC_CHALLENGE, ARC_EASY
from llmtrain.tasks.attribute_pairs import ATTRIBUTE_PAIRS
from llmtrain.tasks.bbq import BBQ
from llmtrain.tasks.copa import COPA
from llmtrain.tasks.countdown import COUNTDOWN
from llmtrain.tasks.crows_pairs import CROWS_PAIRS
from llmtrain.tasks.gsm8k import GSM8K
from llmtrain.tasks.hellaswag import HELLASWAG
from llmtrain.tasks.lambada import LAMBADA
from llmtrain.tasks.mbpp import MBPP
from llmtrain.tasks.own_rows import ANSWERED, ANSWERS, CHOICES, PROMPTS
from llmtrain.tasks.piqa import PIQA
from llmtrain.tasks.task import AnswerTask, BiasTask, ChoiceTask, ContinuationTask, Fields, RowFault, Task, TextTask
from llmtrain.tasks.texts import TEXT
from llmtrain.tasks.winogender import WINOGENDER
from llmtrain.tasks.winogrande import WINOGRANDE

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        ARC_EASY,
        ARC_CHALLENGE,
        PIQA,
        WINOGRANDE,
        COPA,
        HELLASWAG,
        LAMBADA,
        GSM8K,
        MBPP,
        COUNTDOWN,
        CHOICES,
        ANSWERED,
        TEXT,
        CROWS_PAIRS,
        WINOGENDER,
        BBQ,
        ATTRIBUTE_PAIRS,
    )
}
BIAS = {name: task for name, task in TASKS.items() if isinstance(task, BiasTask)}
"""The measures of bias."""
PYTHON = ".py"
VARIABLE = "TASK"
KINDS = (BiasTask, ChoiceTask, ContinuationTask, AnswerTask, TextTask)


def load_task(name: str, key: str) -> Task:
    """The task of a name, or of a `FILE.py`. Raises ValueError, naming the `key`, for one that is not there."""
    if name in TASKS:
        return TASKS[name]
    if name.endswith(PYTHON):
        task, _ = load_value(Path(name), VARIABLE, key)
        if not isinstance(task, KINDS):
            raise ValueError(f"{key}: {name}: TASK is no task of llmtrain.tasks.task but {type(task).__name__}")
        return task
    near = nearest(name, TASKS)
    hint = f"the nearest is {near}" if near else f"there are {', '.join(TASKS)}, FILE.py, and files of rows"
    raise ValueError(f"{key}: no task {name!r}: {hint}")


def reward_of(name: str, key: str) -> tuple[Callable[..., list[float]], Mapping[str, str]]:
    """The reward that a task's score is, and what says which code it is. Raises ValueError if the task has none."""
    if is_rows(name):
        raise ValueError(f"{key}: task:{name} is a file of rows: name it in data.train, and the reward task:answers")
    task = load_task(name, key)
    if not isinstance(task, AnswerTask):
        have = ", ".join(each.name for each in TASKS.values() if isinstance(each, AnswerTask))
        raise ValueError(f"{key}: the task {name} scores no generated answers, so it is no reward; these do: {have}")
    return task.reward, load_value(Path(name), VARIABLE, key)[1] if name.endswith(PYTHON) else {"task": name}


def is_rows(name: str) -> bool:
    """Whether a name is that of a file of rows, which is a task of its own."""
    suffixes = Path(name).suffixes
    kept = [suffix for suffix in suffixes if suffix not in COMPRESSIONS]
    return bool(kept) and kept[-1] in READERS


def task_of_rows(first: Fields) -> Task:
    """The task that rows like the first one are: choices, answers or texts. Raises RowFault for other rows."""
    if "choices" in first:
        return CHOICES
    if "text" in first and "answer" not in first:
        return TEXT
    if first.keys().isdisjoint({*PROMPTS, *ANSWERS}):
        raise RowFault(
            f"the fields {', '.join(map(repr, first)) or '(none)'} are of no task: rows are "
            "{prompt, choices, answer}, {prompt, answer} or {text}; other rows need a task of yours, "
            "as FILE.py=ROWS (docs/evaluate.md)"
        )
    return ANSWERED
