"""What the model of a fold predicts of the rows that it never saw: one line for each item."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.config.recipes import PreferenceStageConfig, RewardStageConfig, SftConfig
from llmtrain.config.rl import PREFERENCE_LOSSES
from llmtrain.data.chat.encode import Encoded
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.data.loader.batches import collate, token_batches
from llmtrain.data.packing.documents import Pack, next_token_labels
from llmtrain.models.attention import attention_dropout
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.folders.given import model_folder
from llmtrain.models.folders.open import open_model
from llmtrain.models.folders.reward import load_reward_model
from llmtrain.models.load import load_pretrained
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.objectives.preference_losses import (
    PAIR_LOSS_FUNCTIONS,
    PairLogprobs,
    PreferenceOptions,
    bradley_terry,
    correctness,
)
from llmtrain.recipes.model import given_model, open_chat
from llmtrain.system.device import attention_kernel
from llmtrain.system.files import write_bytes
from llmtrain.system.precision import DTYPES, reading
from llmtrain.system.typing import Array
from llmtrain.tune.crossval.items import Item, Record, held_out_items
from llmtrain.tune.crossval.plan import FREE_DIR, Plan
from llmtrain.tune.crossval.rows import row_line

FoldConfig = SftConfig | RewardStageConfig | PreferenceStageConfig
Logprobs = Callable[[Sequence[Encoded]], Array]
"""Documents -> the log-prob of the trained tokens of each in nats, summed; (documents,) float64."""


def predict_fold(plan: Plan, fold: int) -> None:
    """Write the predictions of a fold's finished run. Raises ValueError if its model cannot be opened.

    What its run has said of model and rows already is not said again.
    """
    config = plan.fold_config(fold)
    assert isinstance(config, FoldConfig)
    loss_on = config.data.loss_on if isinstance(config, SftConfig) else "completion"
    base = given_model(config)
    chat = open_chat(config, base, loss_on, report=_quiet)
    items, dropped = held_out_items(plan, fold, chat.encoder)
    if isinstance(config, SftConfig):
        lines = _chats(items, _tuned(plan, fold, config))
    elif isinstance(config, PreferenceStageConfig):
        needs_reference = PREFERENCE_LOSSES[config.preference.loss].needs_reference
        reference = _reference(items, config, chat) if needs_reference else None
        score = _answers if config.preference.loss == "kto" else _pairs
        lines = score(items, config, _tuned(plan, fold, config), reference)
    else:
        lines = _scored_pairs(items, plan, fold, config)
    path = plan.predictions_path(fold)
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, b"".join(map(row_line, [*lines, *dropped])), FREE_DIR)


def _chats(items: Sequence[Item], logprobs: Logprobs) -> list[Record]:
    """With the nats per trained token of each."""
    documents = [document for item in items for document in item.documents]
    if any(document.weights is not None for document in documents):
        raise ValueError("rows or messages have weights, and the loss of held-out rows here knows none: take them out")
    nats = iter((-logprobs(documents)).tolist())
    lines = []
    for item in items:
        tokens = sum(_num_trained(document) for document in item.documents)
        lines.append({**item.record, "tokens": tokens, "loss": sum(islice(nats, len(item.documents))) / tokens})
    return lines


def _scored_pairs(items: Sequence[Item], plan: Plan, fold: int, config: FoldConfig) -> list[Record]:
    """With the reward model's score of each answer, and the Bradley-Terry loss without margins."""
    model, _ = load_reward_model(model_folder(str(plan.run_folder(fold))))
    device = _device()
    model.to(device)
    prepare_layers(model.model, device)

    def scores(batch: PackedTokens) -> list[float]:
        found: list[float] = model(batch).double().tolist()
        return found

    found = torch.from_numpy(_each_document(items, scores, model, device, config))
    return _pair_lines(items, bradley_terry(found[::2], found[1::2]), found[::2], found[1::2])


def _pairs(
    items: Sequence[Item], config: PreferenceStageConfig, logprobs: Logprobs, reference: Array | None
) -> list[Record]:
    """With the loss of the run and the rewards that it implies."""
    documents = [document for item in items for document in item.documents]
    found = torch.from_numpy(logprobs(documents))
    lengths = torch.tensor([float(_num_trained(document)) for document in documents], dtype=torch.float64)
    before = None if reference is None else torch.from_numpy(reference)
    pairs = PairLogprobs(
        chosen=found[::2],
        rejected=found[1::2],
        ref_chosen=None if before is None else before[::2],
        ref_rejected=None if before is None else before[1::2],
        chosen_lengths=lengths[::2],
        rejected_lengths=lengths[1::2],
    )
    options = PreferenceOptions(**config.preference.options())
    return _pair_lines(items, *PAIR_LOSS_FUNCTIONS[config.preference.loss](pairs, options))


def _answers(
    items: Sequence[Item], config: PreferenceStageConfig, logprobs: Logprobs, reference: Array | None
) -> list[Record]:
    """With the reward that a policy trained by KTO implies."""
    assert reference is not None
    found = logprobs([document for item in items for document in item.documents])
    rewards = config.preference.options()["beta"] * (found - reference)
    return [{**item.record, "reward": float(reward)} for item, reward in zip(items, rewards, strict=True)]


def _pair_lines(
    items: Sequence[Item], losses: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor
) -> list[Record]:
    columns = {
        "chosen_score": chosen,
        "rejected_score": rejected,
        "margin": chosen - rejected,
        "loss": losses,
        "correct": correctness(chosen - rejected),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {**item.record, **dict(zip(columns, map(float, row), strict=True))}
        for item, row in zip(items, rows, strict=True)
    ]


def _tuned(plan: Plan, fold: int, config: FoldConfig) -> Logprobs:
    """The model that a fold's run has exported."""
    model, _ = open_model(str(plan.run_folder(fold)))
    return _logprobs_of(model.get_base_model() if isinstance(model, PeftModel) else model, config)


def _reference(items: Sequence[Item], config: FoldConfig, chat: ChatTokenizer) -> Array:
    """What the model that a run starts from gives every document; it is freed before the trained one is opened."""
    base = given_model(config)
    model = load_pretrained(
        base,
        chat.tokenizer,
        max_seq_len=config.data.max_seq_len,
        new_token_ids=chat.new_token_ids,
        report=_quiet,
    )
    found = _logprobs_of(model, config)([document for item in items for document in item.documents])
    del model
    gc.collect()
    return found


def _logprobs_of(model: PreTrainedModel, config: FoldConfig) -> Logprobs:
    device, dtype = _device(), DTYPES[config.train.precision]
    if dtype == torch.float32 and config.model.quantize is None:
        model.float()  # a base that is stored in bf16 trained in fp32 too
    prepare_layers(model, device)
    kernel = attention_kernel(config.model.attention, device, dtype, attention_dropout(model.config))
    checked = wrap_causal_lm(model, kernel, config.data.max_seq_len, device)
    module = ActorCritic(checked, temperature=1.0, trains_entropy=False)

    def logprobs(documents: Sequence[Encoded]) -> Array:
        def of_batch(batch: PackedTokens) -> list[float]:
            counts = [int(part.ne(IGNORE_INDEX).sum()) for part in batch.labels.cpu().split(batch.segment_lengths)]
            return [float(part.sum()) for part in module(batch).logprobs.double().cpu().split(counts)]

        return _each_document([Item({}, list(documents))], of_batch, module, device, config)

    return logprobs


def _each_document(
    items: Sequence[Item],
    of_batch: Callable[[PackedTokens], list[float]],
    module: nn.Module,
    device: torch.device,
    config: FoldConfig,
) -> Array:
    """A number of each document of all items, computed in packs without gradient; (documents,) float64."""
    documents = [document for item in items for document in item.documents]
    found = np.zeros(len(documents))
    batches = token_batches([len(document.input_ids) for document in documents], config.train.microbatch_tokens)
    with reading(module, device, DTYPES[config.train.precision]):
        for batch in batches:
            packed = collate([(index, _pack(documents[index])) for index in batch])
            found[batch] = of_batch(packed.to(device))
    return found


def _pack(document: Encoded) -> Pack:
    ids = document.input_ids.astype(np.int64)
    return Pack(ids, next_token_labels(ids, document.trained), (len(ids),))


def _num_trained(document: Encoded) -> int:
    return int(np.count_nonzero(document.trained[1:]))


def _quiet(_: str) -> None:
    """Take a line, and leave it out."""


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")
