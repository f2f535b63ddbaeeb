"""A model's folder -> a subject, what is recorded of it, and a generator of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.eval.tasks.measure import Generate
from llmtrain.eval.tasks.results import WEIGHTS
from llmtrain.eval.tasks.subject import Subject, subject_of
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.folders.open import open_model
from llmtrain.models.stops import Stops
from llmtrain.models.text_part import require_rows
from llmtrain.protocols import Report
from llmtrain.replies.stops import answer_stops
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.local.generate import generate


@dataclass(frozen=True)
class Opened:
    """What is known of an opened model."""

    record: Mapping[str, Any]  # for the file of results
    stops: Stops


def opened_subject(path: str, report: Report) -> tuple[Subject, Opened]:
    """A run's, a model's or an adapter's folder, or a GGUF file, opened. Raises ValueError as `open_model` does."""
    model, tokenizer = open_model(path)
    try:
        subject = subject_of(model, tokenizer, report)
    except ValueError as error:
        raise ValueError(f"{path}: {error}, nor measured here; --harness may measure it") from None
    record = {
        "path": path,
        "tokenizer": tokenizer_digest(tokenizer),
        "dtype": str(subject.model.dtype),
        WEIGHTS: model_digest(subject.model),
    }
    return subject, Opened(record, answer_stops(model, tokenizer))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 digits that are equal for tokenizers with the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return blake2b(repr(vocabulary).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def model_digest(model: PreTrainedModel) -> str:
    """16 digits that any changed weight, and any field of the configuration that changes the forward, changes."""
    return blake2b(repr(base_facts(model, whole=True)).encode(), digest_size=8).hexdigest()


def generated(subject: Subject, should_stop: Callable[[], bool] = lambda: False) -> Generate:
    """Answers by our generator."""

    def answers(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generated] | None:
        require_rows(subject.model, chain.from_iterable(prompts), subject.tokenizer)
        return generate(subject.model, prompts, range(len(prompts)), sampling, should_stop)

    return answers
