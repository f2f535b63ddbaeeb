"""Answers to held-out questions: at each evaluation of a run (`eval.samples`), and before and after it."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmtrain.config.data import SourcesConfig
from llmtrain.config.recipes import TuningConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.data.formats.held_out import Question
from llmtrain.eval.before_after.answers import ANSWERS, Answers
from llmtrain.eval.before_after.measure import Measurement
from llmtrain.eval.samples import WithSamples
from llmtrain.models.stop_texts import stop_texts
from llmtrain.models.stops import stops_of
from llmtrain.protocols import Evaluate
from llmtrain.recipes.trainer import Run
from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.local.generator import LocalGenerator

Questions = Callable[[SourcesConfig, PreTrainedTokenizerFast, int, int], list[Question]]
"""(data, tokenizer, how many, most tokens of each) -> held-out questions."""


def with_samples(
    run: Run[TuningConfig],
    evaluate: Evaluate,
    questions: Questions,
    model: PreTrainedModel,
    chat: ChatTokenizer,
) -> Evaluate:
    """An evaluation that also samples answers, if the run asks for them and they can be had; else says why not."""
    runtime, count = run.runtime, run.config.eval.samples
    if not count:
        return evaluate
    if (reason := runtime.refusal("rollouts")) is not None:
        runtime.say(f"eval.samples: no held-out prompt is answered under {runtime.engine}: {reason}")
        return evaluate
    asked, generator, sampling = _asked(run, questions, count, model, chat)
    if not asked:
        runtime.say("eval.samples: no held-out row has a prompt that leaves room for an answer: none is answered")
        return evaluate
    return WithSamples(evaluate, asked, generator, sampling, chat.tokenizer, runtime)


def answers_to(
    run: Run[TuningConfig], model: PreTrainedModel, chat: ChatTokenizer, questions: Questions
) -> dict[str, Measurement]:
    """Answers to the first held-out questions, before and after training; {} if none is there, or asked for."""
    data, count = run.config.data, run.config.eval.before_after
    evaluates = data.eval is not None or data.eval_fraction > 0
    if not count or not evaluates or run.runtime.refusal("rollouts") is not None:
        return {}
    asked, generator, sampling = _asked(run, questions, count, model, chat)
    return {ANSWERS: Answers(asked, generator, sampling, chat.tokenizer, run.runtime)} if asked else {}


def _asked(
    run: Run[TuningConfig], questions: Questions, count: int, model: PreTrainedModel, chat: ChatTokenizer
) -> tuple[list[Question], LocalGenerator, Sampling]:
    """At most `count` held-out questions, and what answers them: greedily, until a signal asks the run to stop."""
    data = run.config.data
    max_new_tokens = min(run.config.eval.sample_tokens, data.max_seq_len // 2)
    asked = questions(data, chat.tokenizer, count, data.max_seq_len - max_new_tokens)
    stops = stops_of(model, chat.tokenizer, chat.encoder.end_of_turn_ids)
    texts = stop_texts(stops.texts, chat.tokenizer)
    sampling = Sampling(max_new_tokens, temperature=0, stop_ids=stops.ids, stop_texts=texts)
    return asked, LocalGenerator(model, run.runtime, lambda: run.stop.requested is not None), sampling
