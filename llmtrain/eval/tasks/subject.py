"""A model that is measured: it computes packs, and its tokenizer says what a text is to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.models.context import num_positions
from llmtrain.models.wrappers.checks import shares_prompts, wrap_causal_lm
from llmtrain.protocols import Report
from llmtrain.system.device import AttentionKernel, attention_kernel

UNLIMITED_POSITIONS = 8192
"""Tokens of a context for a model that names no limit."""


@dataclass(frozen=True)
class Subject:
    """A model under evaluation."""

    model: PreTrainedModel  # known to compute packs as single documents
    tokenizer: PreTrainedTokenizerBase
    kernel: AttentionKernel
    whole_logits: bool  # the head cannot run in chunks, so it gives the logits of all tokens at once
    max_tokens: int  # positions
    shares_prefixes: bool  # whether choices of an item can share their context in a pack

    def encoded(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts before any text."""
        return list(self.tokenizer.encode(text, add_special_tokens=not self._begins_with_bos(text)))

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _begins_with_bos(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return isinstance(bos, str) and text.startswith(bos)

    @property
    def first_id(self) -> int:
        """The token before a text that has nothing before it. Raises ValueError if the tokenizer has none."""
        for id_ in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(id_, int):
                return id_
        raise ValueError("the tokenizer has neither a BOS nor an EOS token, so a text has nothing to be predicted from")


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: Report) -> Subject:
    """A loaded model, ready to be measured: in fp32 on a CPU, elsewhere in the type that it is in.

    Raises ValueError for an architecture that does not compute packed documents as it computes them alone.
    """
    if model.device.type == "cpu":
        model = model.float()
    base = plain_model(model)
    positions = position_limit(base)
    kernel = attention_kernel("auto", base.device, base.dtype, 0.0)
    module = wrap_causal_lm(base, kernel, positions, base.device)
    shares = shares_prompts(base, module.kernel, positions, base.device, lambda line: None)
    dtype = str(base.dtype).removeprefix("torch.")
    report(f"measuring in {dtype} on {base.device}, with contexts up to {positions:,} tokens")
    return Subject(base.eval(), tokenizer, module.kernel, module.whole_logits, positions, shares)


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The `transformers` model, whose layers hold an adapter's where there is one."""
    if not isinstance(model, PeftModel):
        return model
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def position_limit(model: PreTrainedModel) -> int:
    """The tokens of a context, which a model's positions allow."""
    return num_positions(model.config) or UNLIMITED_POSITIONS
