"""Answers to held-out questions at each evaluation of a run (`eval.samples`)."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmtrain.config.data import SourcesConfig
from llmtrain.config.recipes import TuningConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.data.formats.held_out import Question
from llmtrain.eval.samples import WithSamples
from llmtrain.models.stops import stop_ids
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
    config, runtime = run.config, run.runtime
    if not config.eval.samples:
        return evaluate
    if (reason := runtime.refusal("rollouts")) is not None:
        runtime.say(f"eval.samples: no held-out prompt is answered under {runtime.engine}: {reason}")
        return evaluate
    max_new_tokens = min(config.eval.sample_tokens, config.data.max_seq_len // 2)
    asked = questions(config.data, chat.tokenizer, config.eval.samples, config.data.max_seq_len - max_new_tokens)
    if not asked:
        runtime.say("eval.samples: no held-out row has a prompt that leaves room for an answer: none is answered")
        return evaluate
    sampling = Sampling(max_new_tokens, temperature=0, stop_ids=stop_ids(model, chat.encoder.end_of_turn_ids))
    generator = LocalGenerator(model, runtime, lambda: run.stop.requested is not None)
    return WithSamples(evaluate, asked, generator, sampling, chat.tokenizer, runtime)
