"""How many tokens a tokenizer makes of the texts, and how many bytes each of them is: by source and by language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain.data.quality.items import Item

BATCH = 256


@dataclass(frozen=True)
class Efficiency:
    """Text and its tokens."""

    num_items: int
    num_bytes: int  # of the text that was encoded
    num_tokens: int
    num_unknown: int

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(1, self.num_tokens)


@dataclass(frozen=True)
class Tokens:
    """The sample in tokens, without chat templates."""

    tokenizer: str
    vocab_size: int
    lengths: Sequence[float]  # tokens of each item; of one that is cut, in proportion
    total: Efficiency
    by_source: Sequence[Efficiency]
    by_language: Mapping[str, Efficiency]


def tokens(
    items: Sequence[Item], num_sources: int, name: str, tokenizer: Any, of_items: Sequence[str] | None
) -> Tokens:
    """Encode every item by a tokenizer of transformers. `of_items`: the language of each, if it is known."""
    from llmtrain.data.tokenize import TextEncoder

    encoder = TextEncoder(tokenizer)
    lengths: list[float] = []
    counts: defaultdict[object, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        for offset, (item, ids) in enumerate(zip(batch, encoder.encode([item.text for item in batch]), strict=True)):
            num_bytes = len(item.text.encode(errors="surrogatepass"))
            unknown = 0 if encoder.unknown_id is None else int((ids == encoder.unknown_id).sum())
            groups: list[object] = ["all", item.source]
            groups += [("language", of_items[start + offset])] if of_items is not None else []
            for group in groups:
                for place, amount in enumerate((1, num_bytes, len(ids), unknown)):
                    counts[group][place] += amount
            lengths.append(len(ids) * item.num_bytes / max(1, num_bytes))
    ordered = list(dict.fromkeys(of_items or ()))
    return Tokens(
        tokenizer=name,
        vocab_size=encoder.vocab_size,
        lengths=lengths,
        total=Efficiency(*counts["all"]),
        by_source=[Efficiency(*counts[number]) for number in range(num_sources)],
        by_language={name: Efficiency(*counts[("language", name)]) for name in ordered},
    )
