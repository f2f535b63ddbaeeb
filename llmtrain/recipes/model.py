"""The model of a tuning run: loaded with its adapter, pinned by its facts, exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.recipes import RecipeConfig, TuningConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.data.formats.prompts import Prompts
from llmtrain.data.sources.files import fingerprint
from llmtrain.data.store.build import Stores
from llmtrain.data.tokenize import tokenizer_fingerprint
from llmtrain.models.adapters.lora import adapter_report, add_adapter
from llmtrain.models.folders.kind import LANGUAGE, ModelKind
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import hub_commit, load_pretrained
from llmtrain.recipes.trainer import Run
from llmtrain.runs.facts import Facts
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
    run: Run[RecipeConfig],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Stores | Prompts,
    *,
    base: Mapping[str, Any],
    shared_prompts: bool | None = None,
) -> Facts:
    """What a resumed run must find again, whatever its recipe.

    `base`: facts of the model as it was loaded. `shared_prompts`: whether a pack holds the prompt of a pair once; None:
    it holds no pairs.
    """
    return Facts(
        base=base,
        code=hub_commit(model.config) if run.config.model.trust_remote_code else None,
        tokenizer=tokenizer_facts(tokenizer),
        data=data_names(data),
        packing={"shared_prompts": shared_prompts},
    )


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All of a tokenizer that decides the ids of a row: vocabulary, added tokens, chat template."""
    template = tokenizer.chat_template
    return {
        "vocabulary": tokenizer_fingerprint(tokenizer),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": None if template is None else fingerprint(template),
    }


def data_names(data: Stores | Prompts) -> dict[str, list[str]]:
    """What identifies the content of each source, trained on and held out."""
    if isinstance(data, Prompts):
        return data.names
    names, num_train = data.names, len(data.train)
    return {"train": names[:num_train], "eval": names[num_train:]}


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
