"""The model of a tuning run: loaded with its adapter, pinned by its facts, exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.recipes import RecipeConfig, TuningConfig
from llmtrain.config.sections import PretrainedModelConfig, TunedModelConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer
from llmtrain.data.formats.prompts import Prompts
from llmtrain.data.loader.order import ORDER_VERSION
from llmtrain.data.sources.files import fingerprint, resolve
from llmtrain.data.store.build import Stores
from llmtrain.data.tokenize import load_tokenizer, tokenizer_fingerprint
from llmtrain.models.adapters.lora import adapter_report, add_adapter
from llmtrain.models.folders.kind import LANGUAGE, ModelKind
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import hub_commit, load_pretrained, resolve_model
from llmtrain.recipes.trainer import Run
from llmtrain.runs.facts import Facts
from llmtrain.system.precision import export_dtype
from llmtrain.train.optim import OPTIMIZER_BYTES


def given_model(config: TuningConfig) -> TunedModelConfig:
    """The model section, with a GGUF file converted: once the data is known to be there, as converting takes minutes.

    Raises ValueError for a file or a source that is not there.
    """
    if config.model.path.endswith(".gguf"):
        for source in (*config.data.train, *(config.data.eval or ())):
            resolve(source)
    return resolve_model(config.model)


def load_with_adapter(run: Run[TuningConfig], base: TunedModelConfig, chat: ChatTokenizer) -> PreTrainedModel:
    """The model that a tuning run starts from, with its adapter if it has one."""
    config, new_ids = run.config, new_tokens(run, base, chat.tokenizer, chat.new_token_ids)
    model = load_pretrained(
        base,
        chat.tokenizer,
        max_seq_len=config.data.max_seq_len,
        new_token_ids=new_ids,
        report=run.runtime.say,
    )
    if config.adapter.kind != "none":
        add_adapter(model, config.adapter, new_ids, config.run.seed)
    return model


def new_tokens(
    run: Run[RecipeConfig],
    base: PretrainedModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    known_new: Sequence[int] = (),
) -> tuple[int, ...]:
    """Ids of the tokens that the model of `base` has no trained rows for, as its own tokenizer lacks them; reported.

    `known_new`: those of a chat template, which are all if the tokenizer is the model's own. Raises ValueError for a
    tokenizer in which ids of the model's tokens belong to others.
    """
    key = f"tokenizer.path={run.config.tokenizer.path}"
    if run.config.tokenizer.path is None or base.path is None:
        return tuple(known_new)
    try:
        own = load_tokenizer(base.path, base.revision, base.trust_remote_code).get_vocab()
    except ValueError:
        run.runtime.say(f"warning: {key}: model.path={base.path} has no tokenizer to compare it with")
        return tuple(known_new)
    vocabulary = tokenizer.get_vocab()
    by_id = {token_id: token for token, token_id in vocabulary.items()}
    moved = [token for token, token_id in own.items() if by_id.get(token_id, token) != token]
    if moved:
        raise ValueError(
            f"{key}: {len(moved):,} ids of the {len(own):,} tokens of model.path={base.path} belong to other tokens, "
            f"such as that of {moved[0]!r}: take the model's own tokenizer, or one that adds tokens to it"
        )
    if missing := len(own.keys() - vocabulary.keys()):
        run.runtime.say(f"warning: {key}: {missing:,} tokens of model.path={base.path} are not in it")
    new = sorted(token_id for token, token_id in vocabulary.items() if token not in own)
    if set(new) - set(known_new):
        run.runtime.say(
            f"{key}: {len(new):,} tokens that model.path={base.path} does not know, such as {by_id[new[0]]!r}: their "
            "rows start at the mean of the others"
        )
    return tuple(new)


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
        packing={"shared_prompts": shared_prompts, "order": ORDER_VERSION},
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
