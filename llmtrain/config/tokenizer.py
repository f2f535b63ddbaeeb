"""The configuration of tokenizer training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from llmtrain.config.data import OnBadRow, Source, SourcesConfig
from llmtrain.config.sections import Fraction, Positive, Section


class SpecialTokens(Section):
    bos: str = "<|bos|>"
    """Starts every document."""
    eos: str = "<|eos|>"
    """Ends every document."""
    pad: str = "<|pad|>"
    """Fills up what must have a fixed shape; never trained."""
    start_of_turn: str = "<|im_start|>"
    """Starts a chat turn."""
    end_of_turn: str = "<|im_end|>"
    """Ends a chat turn."""
    reserved: Annotated[int, Field(ge=0)] = 16
    """Control tokens kept free for later: `<|reserved_0|>`, ..."""


class TokenizerTrainConfig(Section):
    """`tokenizer/train.py`: text to a byte-level BPE tokenizer."""

    output: str
    """Folder to write."""
    sources: list[Source]
    """Text to learn merges from, as in `data.train`."""
    vocab_size: Annotated[int, Field(ge=256, le=10_000_000)] = 32768
    """Size of the vocabulary, bytes and special tokens included."""
    eval_fraction: Fraction = 0.01
    """Share of documents held out to measure bytes per token."""
    max_bytes: Positive | None = None
    """Stop reading after this much text; None: read all."""
    on_bad_row: OnBadRow = "error"
    """A malformed or invalid row stops the training, or is skipped and counted."""
    min_frequency: Positive = 2
    """Least count of a pair for a merge."""
    split_digits: bool = True
    """Split numbers into groups of at most three digits, as Llama 3 does."""
    special_tokens: SpecialTokens = SpecialTokens()

    _as_sources = field_validator("sources", mode="before")(SourcesConfig._as_sources.__func__)  # type: ignore[attr-defined]
