"""An evaluation that also asks the model a few held-out questions, so that a person sees how its answers change.

Answers are greedy: between two evaluations nothing differs but the weights, no seed decides what is seen, and a model
that repeats itself or does not stop shows it there first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

from llmtrain.data.formats.held_out import Question
from llmtrain.protocols import Evaluate, Ranks
from llmtrain.rewards.score import answer_text
from llmtrain.rollout.engine import Generator, Sampling
from llmtrain.rollout.sample_log import as_messages, gather_rows


@dataclass(frozen=True)
class WithSamples:
    """Another evaluation, and the answers to some questions, split among ranks."""

    evaluate: Evaluate
    questions: Sequence[Question]
    generator: Generator
    sampling: Sampling
    tokenizer: PreTrainedTokenizerFast
    ranks: Ranks

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """What the other evaluation returns, `eval_terminated_ratio`, and the samples; None if asked to stop.

        A model whose held-out loss is not finite is not asked. The generator has the model, so it is not called here.
        """
        values = self.evaluate(model, should_stop)
        if values is None or not math.isfinite(values["eval_loss"]):
            return values
        mine = range(self.ranks.rank, len(self.questions), self.ranks.world_size)
        with self.generator.current_weights():
            responses = self.generator.generate([self.questions[i].ids for i in mine], list(mine), self.sampling)
        if self.ranks.any(responses is None):  # a rank notices a stop by itself; here all learn of it
            return None
        assert responses is not None
        rows = [
            {
                "index": index,
                "prompt": as_messages(self.questions[index].messages),
                "response": answer_text(self.questions[index].ids, response, self.tokenizer),
                "stopped": response.stopped,
                "reference": self.questions[index].reference,
            }
            for index, response in zip(mine, responses, strict=True)
        ]
        (ended,) = self.ranks.sum_floats([float(sum(response.stopped for response in responses))])
        count = len(self.questions)
        return values | {
            "eval_terminated_ratio": ended / count,
            "samples": gather_rows(rows, self.ranks, by="index"),
            "summary": f"{values['summary']}, {ended:.0f} of {count} answers end by themselves",
        }
