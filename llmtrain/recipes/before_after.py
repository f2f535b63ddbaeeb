"""What a tuning run measures before and after training (`eval.before_after`): for its model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn
from transformers import PreTrainedModel

from llmtrain.config.recipes import TuningConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.eval.before_after.answers import ANSWERS, Answers
from llmtrain.eval.before_after.held_out import HeldOutItems
from llmtrain.eval.before_after.measure import BeforeAfter, Measurement
from llmtrain.eval.before_after.together import tasks_together
from llmtrain.eval.tasks.measure import Asking
from llmtrain.eval.tasks.opened import tokenizer_digest
from llmtrain.eval.tasks.results import BITS_PER_BYTE, TaskResult
from llmtrain.eval.tasks.subject import Subject
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.protocols import Ranks
from llmtrain.recipes.items import GENERAL_TEXT, items_of
from llmtrain.recipes.tasks import asking_of, trained_subject
from llmtrain.recipes.trainer import Run
from llmtrain.system.counted import counted
from llmtrain.tasks.rows import TaskRows


def before_after(
    run: Run[TuningConfig],
    model: PreTrainedModel,
    chat: ChatTokenizer,
    module: CausalLMLoss | ActorCritic,
    own: Mapping[str, Measurement],
) -> BeforeAfter | None:
    """What is measured before and after, said in a line; None if the run does not ask for it, or there is nothing.

    `own`: what the recipe holds out, and the answers to it. `module` computes `model`.
    """
    config, runtime = run.config.eval, run.runtime
    if not config.before_after:
        return None
    measurements = dict(own)
    if (reason := runtime.refusal("rollouts")) is not None:
        runtime.say(f"eval.before_after: only held-out losses are measured under {runtime.engine}: {reason}")
        measurements.pop(ANSWERS, None)
    else:
        items = items_of(config)
        subject = trained_subject(model, chat.tokenizer, module, run.config.data.max_seq_len)
        asking = asking_of(run, subject, chat.encoder.end_of_turn_ids)
        for task_rows in (*([] if items.general_text is None else [items.general_text]), *items.tasks):
            measurements[task_rows.task.name] = partial(_task, task_rows, subject, asking, runtime)
    if not measurements:
        runtime.say("eval.before_after: nothing is held out, so nothing is measured before and after training")
        return None
    record = {
        "path": str(run.folder),
        "tokenizer": tokenizer_digest(chat.tokenizer),
        "dtype": str(runtime.dtype),
    }
    asked = ", ".join(f"{name.replace('_', ' ')} ({_size(each)})" for name, each in measurements.items())
    return BeforeAfter(measurements, asked, record, runtime, runtime.say)


def _task(
    task_rows: TaskRows, subject: Subject, asking: Asking, ranks: Ranks, module: nn.Module, should_stop: object
) -> list[TaskResult] | None:
    """A task's results; of general text the bits per byte alone, which say the same as nats per token."""
    result = tasks_together(task_rows, subject, asking, ranks)
    if result is None:
        return None
    return [result if result.task != GENERAL_TEXT else replace(result, measures=[BITS_PER_BYTE])]


def _size(measurement: Measurement) -> str:
    """How much is measured, in words that are equal where the numbers compare."""
    match measurement:
        case Answers():
            return f"{len(measurement.asked)} of at most {measurement.sampling.max_new_tokens} tokens"
        case HeldOutItems():
            return counted(measurement.num_documents, "document")
        case partial():
            rows: TaskRows = measurement.args[0]
            asking: Asking = measurement.args[2]
            through = " through the chat template" if asking.chat else ""
            return f"{counted(len(rows.rows), 'item')} of {rows.path}{through}"
    raise AssertionError(measurement)
