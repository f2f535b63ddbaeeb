"""A trained reward model as one reward of the sum: conversations with their answers -> its scores.

It gets answers as text, through its own tokenizer and template, so policy and reward model may have different ones.
It may be any model for sequence classification that `transformers` has, trained here or elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llmtrain.data.chat.encode import BadExample
from llmtrain.data.formats.messages import Conversation, tool_list
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.weight_sharing import share_equal
from llmtrain.models.context import num_positions
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.folders.files import find_reward_card
from llmtrain.models.folders.reward import Classifier, beats_chance, open_classifier, reward_folder
from llmtrain.protocols import Report
from llmtrain.rewards.batch import WeightedReward, of_rows
from llmtrain.rewards.classifier import checked_scores
from llmtrain.rewards.load import reward_weight
from llmtrain.rewards.reading import Document, Reading, reading_of
from llmtrain.rewards.row import Prompt, Row
from llmtrain.system.files import one_line

SETTINGS = ("name", "path", "weight", "label", "revision")
PROBES = ("Yes.", "I do not know that, but I can look it up for you.")  # answers of the check at the start


def model_reward(
    spec: Mapping[str, Any],
    place: str,
    device: torch.device,
    max_tokens: int,
    report: Report,
    base: PreTrainedModel | None = None,
    *,
    refuses_weak: bool = False,
    example: tuple[Prompt, Row] = ("What is 2 + 2?", {}),
    max_document_tokens: int | None = None,
    found: Classifier | None = None,
) -> WeightedReward:
    """The reward of `{name: model, path, weight, label, revision}`; warns of a model that may be no better than chance.

    `base`: a model whose equal frozen weights it shares. `max_tokens`: of a batch. `example`: a prompt that it is tried
    on. `max_document_tokens`: a prompt with its response. `found`: the model, if it is open already. Raises ValueError
    for a missing or unknown setting, and for a model that cannot score such conversations.
    """
    if unknown := sorted(set(spec) - set(SETTINGS)):
        raise ValueError(f"{place}: a reward model has no setting {unknown[0]!r}, only {', '.join(SETTINGS[1:])}")
    weight, path = reward_weight(spec, place), reward_model_path(spec, place)
    folder = reward_folder(path, spec.get("revision"))
    if weak := _weakness(folder):
        if refuses_weak:
            raise ValueError(f"{place}: {path} {weak}: train a better one, or set rollout.on_weak_reward=warn")
        report(f"warning: {place}: {path} {weak}")
    found = found or open_classifier(folder, report)
    label, positions = _label(spec, found, place), _positions(found)
    if positions is not None and max_document_tokens is not None and positions < max_document_tokens:
        raise ValueError(
            f"{place}: {path} has {positions:,} positions, fewer than data.max_seq_len={max_document_tokens:,}: lower "
            "that, or take another reward model"
        )
    reading = _reading(found, place)
    try:
        probes = _require_read(reading.read(_conversations([example[0]] * 2, PROBES, [example[1]] * 2)))
        checked = checked_scores(found, label, probes, max_tokens, device)
    except ValueError as error:
        raise ValueError(f"{place}: {path} cannot score the first prompt: {one_line(error)}") from None
    facts = {"code": {"function": "model"}, "weight": weight, **_facts(found, reading, label)}
    shared = 0
    if checked.packed is not None:
        prepare_layers(found.model, device)
        shared = 0 if base is None else share_equal(found.model, base)
    with_policy = f", sharing {shared / 1e6:,.1f} MB with the policy" if shared else ""
    report(f"{place}: reward model {path}{with_policy}; it reads {reading.description}; {checked.description}")
    said: set[str] = set()

    def abstain(reason: str, message: str) -> None:
        if reason not in said:
            said.add(reason)
            report(f"warning: {place}: the reward model abstains: {message}")

    def scores(prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        """The score of each conversation; None where it cannot be read."""
        kept: dict[int, Document] = {}
        for number, document in enumerate(reading.read(_conversations(prompts, responses, rows))):
            if isinstance(document, BadExample):
                abstain(document.reason, str(document))
            elif positions is not None and len(document["input_ids"]) > positions:
                abstain("too long", f"{len(document['input_ids']):,} tokens are more than its {positions:,} positions")
            else:
                kept[number] = document
        by_number = dict(zip(kept, checked.scores(list(kept.values())), strict=True)) if kept else {}
        return [by_number.get(number) for number in range(len(responses))]

    return WeightedReward(f"model {path}", weight, of_rows(scores), facts)


def _weakness(folder: Path) -> str:
    """What its card says against a reward model; "" if nothing, or it has none. Raises ValueError for a bad card."""
    path = find_reward_card(folder)
    if path is None:
        return ""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        card["accuracy_low"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): export the reward model again") from None
    return "" if beats_chance(card) else f"may be no better than chance according to {path}"


def model_facts(found: Classifier) -> dict[str, Any]:
    """What decides the scores of a reward model."""
    return _facts(found, reading_of(found), 0)


def reward_model_path(spec: Mapping[str, Any], place: str) -> str:
    """The folder of a reward with the name `model`, or its name on the hub. Raises ValueError if it has none."""
    path = spec.get("path")
    if not isinstance(path, str):
        raise ValueError(f"{place}: name the folder of the reward model, or of its run, in path")
    return path


def _facts(found: Classifier, reading: Reading, label: int) -> dict[str, Any]:
    """What decides the scores of a reward model: base, adapter and head, and how it reads conversations."""
    facts = {"model": base_facts(found.model, whole=True), "encoder": reading.fingerprint}
    return {**facts, "label": label} if label else facts


def _label(spec: Mapping[str, Any], found: Classifier, place: str) -> int:
    """The label whose score is the reward. Raises ValueError if it is not there, or not given where there are more."""
    shape, label = found.model.config, spec.get("label")
    by_index = shape.id2label or {}
    count, names = len(by_index), ", ".join(f"{number}: {name}" for number, name in list(by_index.items())[:8])
    if label is None:
        if count > 1:
            raise ValueError(
                f"{place}: {spec['path']} has {count} labels ({names}): give the index of one, as label: 0"
            )
        return 0
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < count:
        raise ValueError(f"{place}.label={label!r}: {spec['path']} has {count} labels ({names}): give the index of one")
    return label


def _positions(found: Classifier) -> int | None:
    """The tokens that a model can read: of some encoders those after the positions that padding takes."""
    positions = num_positions(found.model.config)
    if positions is None or found.has_score_head:
        return positions
    for name, module in found.model.named_modules():
        is_learned = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if is_learned and module.padding_idx is not None:
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    return min(positions, found.tokenizer.model_max_length)


def _reading(found: Classifier, place: str) -> Reading:
    try:
        return reading_of(found)
    except ValueError as error:
        raise ValueError(f"{place}: {one_line(error)}") from None


def _require_read(documents: Sequence[Document | BadExample]) -> list[Document]:
    for document in documents:
        if isinstance(document, BadExample):
            raise document
    return [document for document in documents if not isinstance(document, BadExample)]


def _conversations(prompts: Sequence[Prompt], responses: Sequence[str], rows: Sequence[Row]) -> list[Conversation]:
    """Each prompt with its response and the `tools` of its row."""
    conversations = []
    for number, (prompt, response, row) in enumerate(zip(prompts, responses, rows, strict=True)):
        before = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
        if before[-1]["role"] == "assistant":  # the prompt begins the answer
            before, response = before[:-1], str(before[-1]["content"]) + response
        messages = (*before, {"role": "assistant", "content": response})
        tools = tool_list(row.get("tools"), "'tools'")
        conversations.append(Conversation(messages, len(before), tools, f"response {number}", 0))
    return conversations
