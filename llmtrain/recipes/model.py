"""The model of a tuning run: loaded with its adapter, pinned by its facts, exported."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.recipes import TuningConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.data.loader.order import ORDER_VERSION
from llmtrain.data.store.build import Stores
from llmtrain.data.tokenize import tokenizer_fingerprint
from llmtrain.models.adapters.lora import adapter_report, add_adapter
from llmtrain.models.folders.kind import LANGUAGE, ModelKind
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import hub_commit, load_pretrained
from llmtrain.recipes.trainer import Run
from llmtrain.system.precision import export_dtype
from llmtrain.train.optim import OPTIMIZER_BYTES


def load_with_adapter(run: Run[TuningConfig], base: TunedModelConfig, chat: ChatTokenizer) -> PreTrainedModel:
    """The model that a tuning run starts from, with its adapter if it has one."""
    config = run.config
    model = load_pretrained(base, chat.tokenizer, max_seq_len=config.data.max_seq_len, new_token_ids=chat.new_token_ids)
    if config.adapter.kind != "none":
        add_adapter(model, config.adapter, chat.new_token_ids, config.run.seed)
    return model


def trained_report(run: Run[TuningConfig], module: nn.Module) -> str:
    """One line on what is trained and the memory it takes."""
    return adapter_report(module, OPTIMIZER_BYTES[run.config.optim.name])


def pinned_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str | None = None,
    stores: Stores | None = None,
    shared_prompts: bool | None = None,
) -> dict[str, Any]:
    """What a resumed run must find again: `fingerprint` of the base, tokenizer, stores, their packs, their order."""
    facts = {
        "model_revision": hub_commit(model.config),
        "base_fingerprint": fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "stores": None if stores is None else stores.names,
        "shared_prompts": shared_prompts,
        "sample_order": ORDER_VERSION,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def export_spec(
    run: Run[TuningConfig], model: PreTrainedModel, chat: ChatTokenizer, kind: ModelKind = LANGUAGE
) -> ExportSpec:
    """What the exported folder is made from, besides the weights: it stops where the run's chats end a turn."""
    return ExportSpec(
        model.config,
        chat.tokenizer,
        kind,
        dtype=export_dtype(run.config.train.precision),
        stop_ids=chat.encoder.end_of_turn_ids if kind.generates else (),
        trust_remote_code=run.config.model.trust_remote_code,
    )
