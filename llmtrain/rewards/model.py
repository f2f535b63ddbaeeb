"""A trained reward model as one reward of the sum: conversations with their answers -> its scores.

It gets answers as text, through its own tokenizer and template, so policy and reward model may have different ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.messages import Conversation, tool_list
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.weight_sharing import share_equal
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.folders.files import find_reward_card
from llmtrain.models.folders.open import model_folder
from llmtrain.models.folders.reward import beats_chance, load_reward_model
from llmtrain.models.wrappers.reward_model import RewardModel
from llmtrain.protocols import Report
from llmtrain.rewards.score import WeightedReward, reward_weight
from llmtrain.system.files import one_line


def model_reward(
    spec: Mapping[str, Any],
    place: str,
    device: torch.device,
    max_tokens: int,
    report: Report,
    base: PreTrainedModel | None = None,
    *,
    refuses_weak: bool = False,
) -> WeightedReward:
    """The reward of `{name: model, path, weight}`; warns of a model that may be no better than chance, or refuses it.

    `base`: a model whose equal frozen weights it shares. `max_tokens`: of a batch. Raises ValueError for a missing or
    unknown setting, and for a folder without a reward model.
    """
    if unknown := sorted(set(spec) - {"name", "path", "weight"}):
        raise ValueError(f"{place}: a reward model has no setting {unknown[0]!r}, only path and weight")
    weight, folder = reward_weight(spec, place), model_folder(reward_model_path(spec, place))
    card = find_reward_card(folder)
    if card is not None and not beats_chance(_read_card(card)):
        weak = f"{place}: {spec['path']} may be no better than chance according to {card}"
        if refuses_weak:
            raise ValueError(f"{weak}: train a better one, or set rollout.on_weak_reward=warn")
        report(f"warning: {weak}")
    model, tokenizer = load_reward_model(folder)
    encoder = _encoder(tokenizer)
    facts = {"code": {"function": "model"}, "weight": weight, **reward_facts(model, encoder)}
    model.to(device)
    prepare_layers(model.model, device)
    saved = 0 if base is None else share_equal(model.model, base)
    shared = f", sharing {saved / 1e6:,.1f} MB with the policy" if saved else ""
    report(f"{place}: reward model {spec['path']}{shared}")

    @torch.no_grad()
    def scores(prompts: Sequence[Any], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The score of each conversation, at the end of its last answer."""
        documents = _documents(encoder, prompts, responses, rows)
        order = sorted(range(len(documents)), key=lambda i: len(documents[i].input_ids))
        found = [0.0] * len(documents)
        for batch in _batches(order, [len(document.input_ids) for document in documents], max_tokens):
            packed = _packed([documents[i] for i in batch]).to(device)
            for i, value in zip(batch, model(packed).tolist(), strict=True):
                found[i] = value
        return found

    return WeightedReward(f"model {spec['path']}", weight, scores, facts)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        card["accuracy_low"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): export the reward model again") from None
    return card


def reward_facts(model: RewardModel, encoder: ChatEncoder) -> dict[str, Any]:
    """What decides the scores of a reward model: base, adapter and head, and how it reads conversations."""
    return {"model": base_facts(model.model, whole=True), "encoder": encoder.fingerprint}


def model_facts(folder: Path) -> dict[str, Any]:
    """What decides the scores of the reward model in a folder. Raises ValueError if there is none."""
    model, tokenizer = load_reward_model(folder)
    return reward_facts(model, _encoder(tokenizer))


def _encoder(tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
    return ChatEncoder(tokenizer, plain=tokenizer.chat_template is None, loss_on="last")


def reward_model_path(spec: Mapping[str, Any], place: str) -> str:
    """The folder of a reward with the name `model`. Raises ValueError if it has none."""
    path = spec.get("path")
    if not isinstance(path, str):
        raise ValueError(f"{place}: name the folder of the reward model, or of its run, in path")
    return path


def _documents(
    encoder: ChatEncoder, prompts: Sequence[Any], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[Encoded]:
    """Each prompt with its response and the `tools` of its row. Raises BadExample if the template does not fit."""
    examples = []
    for number, (prompt, response, row) in enumerate(zip(prompts, responses, rows, strict=True)):
        before = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
        messages = (*before, {"role": "assistant", "content": response})
        tools = tool_list(row.get("tools"), "'tools'")
        examples.append(Conversation(messages, len(before), tools, f"response {number}", 0))
    documents = []
    for encoded in encoder.encode(examples):
        if isinstance(encoded, BadExample):
            raise encoded
        documents.append(encoded[-1])
    return documents


def _batches(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `max_tokens`; a longer document is a batch by itself."""
    batches: list[list[int]] = []
    filled = max_tokens
    for index in order:
        if not batches or filled + lengths[index] > max_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += lengths[index]
    return batches


def _packed(documents: Sequence[Encoded]) -> PackedTokens:
    ids = torch.cat([torch.from_numpy(document.input_ids.astype("int64")) for document in documents])
    lengths = tuple(len(document.input_ids) for document in documents)
    return PackedTokens(
        input_ids=ids,
        labels=torch.full_like(ids, IGNORE_INDEX),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        segment_lengths=lengths,
        num_trained=0,
        sample_ids=(),
    )
