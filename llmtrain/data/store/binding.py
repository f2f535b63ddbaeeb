"""What ties a store of text or of ids to its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmtrain.data.tokenize import TextEncoder, encoder_fingerprint


@dataclass(frozen=True)
class Binding:
    """A tokenizer as stores know it, made once for all sources of a run."""

    name: str
    fingerprint: str
    encoder: TextEncoder

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Binding:
        """That of a tokenizer. Raises ValueError for one that the `tokenizers` library does not run."""
        encoder = TextEncoder(tokenizer)
        return cls(tokenizer.name_or_path, encoder_fingerprint(encoder), encoder)

    @property
    def about(self) -> dict[str, Any]:
        """What a store writes down of it."""
        return {"tokenizer": {"name": self.name, "fingerprint": self.fingerprint}}
