"""Scores of documents by a model for sequence classification: packed if that gives `transformers`' own, else padded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.data.loader.batches import token_batches
from llmtrain.models.attention import ATTENTION
from llmtrain.models.folders.reward import Classifier
from llmtrain.models.paths.choose import path_of
from llmtrain.models.paths.path import Path
from llmtrain.models.trunk import run_its_trunk
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.rewards.reading import Document

NO_PACKS = (KeyError, AttributeError, TypeError, ValueError, RuntimeError)  # how models that cannot take them fail
TOLERANCE = 1e-4  # of the largest score, or of 1, in fp32

Scoring = Callable[[Sequence[Document]], list[float]]


@dataclass(frozen=True)
class CheckedScores:
    """How a model scores, found by comparing both ways at the start."""

    scores: Scoring
    packed: RewardModel | None  # None: padded
    description: str


def checked_scores(
    found: Classifier, label: int, documents: Sequence[Document], max_tokens: int, device: torch.device
) -> CheckedScores:
    """The scores of a label, from packs of at most `max_tokens`, if one of `documents` gives those of `transformers`.

    Moves the model to `device`. Raises ValueError for scores that are not finite.
    """
    model = found.model.to(device)  # type: ignore[arg-type]
    stock = [_alone(found, label, document) for document in documents]
    if not all(map(math.isfinite, stock)):
        raise ValueError("its scores are not finite")

    def padded(given: Sequence[Document]) -> list[float]:
        return _padded(found, label, given, max_tokens)

    if not found.has_score_head:
        return CheckedScores(padded, None, f"scores by transformers' own {type(model).__name__}")
    module = RewardModel(model, "segments", label).eval()

    def packed(given: Sequence[Document]) -> list[float]:
        return _packed(module, given, max_tokens, device)

    implementation = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION)
        together = _packed(module, documents, sum(len(each["input_ids"]) for each in documents), device)
        worst = max(abs(one - other) for one, other in zip(together, stock, strict=True))
        problem = f"differ by {worst:.2g}" if not worst <= TOLERANCE * max(1.0, *map(abs, stock)) else None
        if problem is None and path_of(model, run_its_trunk) != Path("segments"):
            problem = "differ in longer documents"  # than these, which no window or RoPE by length shows in
    except NO_PACKS as error:
        problem = f"cannot be computed ({type(error).__name__})"
    if problem is not None:
        model.set_attn_implementation(implementation)
        how = f"scores by transformers' own {type(model).__name__}, as packed ones {problem}"
        return CheckedScores(padded, None, how)
    equal = f"scores equal transformers' (to {worst:.1g}, on {len(documents)} conversations)"
    return CheckedScores(packed, module, equal)


@torch.no_grad()
def _alone(found: Classifier, label: int, document: Document) -> float:
    """The score of one document as `transformers` computes it, without padding."""
    inputs = {name: torch.tensor([ids], device=found.model.device) for name, ids in document.items()}
    return float(found.model(**inputs).logits[0, label])


@torch.no_grad()
def _padded(found: Classifier, label: int, documents: Sequence[Document], max_tokens: int) -> list[float]:
    scores = [0.0] * len(documents)
    pad = found.model.config.get_text_config().to_dict().get("pad_token_id")
    lengths = [len(document["input_ids"]) for document in documents]
    for batch in token_batches(lengths, max_tokens) if pad is not None else [[i] for i in range(len(documents))]:
        width = max(lengths[i] for i in batch)
        inputs = {
            name: torch.tensor(
                [[*documents[i][name], *[pad if name == "input_ids" else 0] * (width - lengths[i])] for i in batch],
                device=found.model.device,
            )
            for name in documents[batch[0]]
        }
        inputs["attention_mask"] = torch.tensor(
            [[1] * lengths[i] + [0] * (width - lengths[i]) for i in batch], device=found.model.device
        )
        for i, value in zip(batch, found.model(**inputs).logits[:, label].tolist(), strict=True):
            scores[i] = value
    return scores


@torch.no_grad()
def _packed(module: RewardModel, documents: Sequence[Document], max_tokens: int, device: torch.device) -> list[float]:
    ids = [_scored(document["input_ids"], module.model.config.pad_token_id) for document in documents]
    scores = [0.0] * len(ids)
    for batch in token_batches([len(each) for each in ids], max_tokens):
        for i, value in zip(batch, module(_pack([ids[i] for i in batch]).to(device)).tolist(), strict=True):
            scores[i] = value
    return scores


def _scored(ids: list[int], pad: int | None) -> list[int]:
    """The ids up to the token that `transformers` scores: the last that is not padding, the first if all are."""
    return ids[: 1 + max((place for place, id_ in enumerate(ids) if id_ != pad), default=0)] if pad is not None else ids


def _pack(documents: Sequence[list[int]]) -> PackedTokens:
    ids: Tensor = torch.tensor([id_ for document in documents for id_ in document])
    lengths = tuple(len(document) for document in documents)
    return PackedTokens(
        input_ids=ids,
        labels=torch.full_like(ids, IGNORE_INDEX),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        segment_lengths=lengths,
        num_trained=0,
        sample_ids=(),
    )
