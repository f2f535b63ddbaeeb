"""The model of a tuning run: loaded with its adapter, pinned by its facts, exported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.data import TemplatedSourcesConfig
from llmtrain.config.recipes import RecipeConfig, TuningConfig
from llmtrain.config.sections import PretrainedModelConfig, TunedModelConfig
from llmtrain.data.chat.arguments import fixed_day
from llmtrain.data.chat.encode import LossOn
from llmtrain.data.chat.system_prompt import own_system_prompt
from llmtrain.data.chat.tokenizer import ChatTokenizer, open_chat_tokenizer
from llmtrain.data.formats.faults import masked_quote
from llmtrain.data.loader.order import ORDER_VERSION
from llmtrain.data.prompts import Prompts
from llmtrain.data.sources.files import fingerprint, resolve
from llmtrain.data.store.build import Stores
from llmtrain.data.tokenize import load_tokenizer, tokenizer_fingerprint
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import adapter_report
from llmtrain.models.adapters.parameters import target_parameters
from llmtrain.models.adapters.quantized import hold_linear_layers, in_4_bits
from llmtrain.models.adapters.renamed import left_out
from llmtrain.models.adapters.targets import WEIGHT, shown
from llmtrain.models.folders.adapter_trial import require_loading
from llmtrain.models.folders.bases import find_base, origin_of, origin_of_base
from llmtrain.models.folders.continued import AdapterPlan, continued
from llmtrain.models.folders.generation import given_generation
from llmtrain.models.folders.given import is_adapter
from llmtrain.models.folders.kind import LANGUAGE, ModelKind
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.folders.saved_dtype import saved_dtype
from llmtrain.models.load import hub_commit, load_pretrained, require_fit, resolve_model
from llmtrain.protocols import Report
from llmtrain.recipes.trainer import Run
from llmtrain.runs.facts import Facts
from llmtrain.system.paths import local_path
from llmtrain.system.precision import name_of
from llmtrain.train.optim import OPTIMIZER_BYTES


def given_model(config: TuningConfig) -> TunedModelConfig:
    """The model section, with a GGUF file converted: once the data is known to be there, as converting takes minutes.

    Raises ValueError for a file or a source that is not there.
    """
    if config.model.path.endswith(".gguf"):
        for source in (*config.data.train, *(config.data.eval or ())):
            resolve(source)
    return resolve_model(config.model)


def open_chat(
    config: TuningConfig, base: TunedModelConfig, loss_on: LossOn = "completion", *, report: Report
) -> ChatTokenizer:
    """The tokenizer and encoder of a tuning run, once its model's configuration fits them and the run's."""
    data = config.data
    assert isinstance(data, TemplatedSourcesConfig)
    chat = open_chat_tokenizer(base, config.tokenizer, data, loss_on)
    if (day := fixed_day(chat.tokenizer.chat_template)) is not None:
        report(
            f"the chat template writes today's date: it is {day} in this run and in the exported folder; "
            "data.template_date sets another"
        )
    if data.system_prompt is None and (own := own_system_prompt(chat.tokenizer)) is not None:
        report(
            f"rows without a system message get the chat template's own, {masked_quote(own)}: data.system_prompt sets "
            "another"
        )
    new_ids = new_tokens(config, base, chat.tokenizer, chat.new_token_ids, report=report)
    plan = adapter_plan(config, base, new_ids)
    require_fit(
        loaded_section(base, plan),
        chat.tokenizer,
        max_seq_len=data.max_seq_len,
        new_token_ids=new_ids if plan is None else plan.new_token_ids,
        adapter=None if plan is None else plan.config,
    )
    return replace(chat, new_token_ids=new_ids)


NOT_COMPILED = "train.compile: peft's adapters on experts (adapter.target_parameters) do not compile: set false"


def adapter_plan(config: TuningConfig, base: TunedModelConfig, new_ids: Sequence[int]) -> AdapterPlan | None:
    """The adapter that the run trains; None: it trains every weight.

    Raises ValueError for `adapter.continue` without an adapter, or with settings that are not its own, and for
    adapters on experts that are to be compiled.
    """
    if config.adapter.kind == "none":
        return None
    plan = AdapterPlan(config.adapter, tuple(new_ids), config.run.seed)
    if config.adapter.continues:
        if not is_adapter(base.path):
            raise ValueError(
                f"adapter.continue: model.path={config.model.path} holds no adapter: give the folder of an adapter, or "
                "of the run that trained it, or leave the key out"
            )
        plan = continued(plan, local_path(base.path))
    if config.train.compile and any(not name.endswith(WEIGHT) for name in plan.config.target_parameters):
        raise ValueError(NOT_COMPILED)
    return plan


def loaded_section(base: TunedModelConfig, plan: AdapterPlan | None) -> TunedModelConfig:
    """The section of the model that is loaded: that of an adapter that goes on is its base."""
    if plan is None or plan.start is None:
        return base
    place = find_base(plan.start)
    return base.model_copy(update={"path": place.path, "revision": place.revision})


class Loaded(NamedTuple):
    """The model that a run starts from, and the adapter that is to go into it."""

    model: PreTrainedModel
    plan: AdapterPlan | None  # None: every weight is trained
    base: Mapping[str, Any]  # `base_facts` of the model before the adapter went in


def load_base(
    run: Run[TuningConfig], base: TunedModelConfig, chat: ChatTokenizer, kind: ModelKind = LANGUAGE
) -> Loaded:
    """The model that a tuning run starts from, without the adapter that it trains; `kind`: what it is to become."""
    run.runtime.say(f"loading {run.config.model.path}")
    plan = adapter_plan(run.config, base, chat.new_token_ids)
    model = load_pretrained(
        loaded_section(base, plan),
        chat.tokenizer,
        max_seq_len=run.config.data.max_seq_len,
        new_token_ids=chat.new_token_ids if plan is None else plan.new_token_ids,
        adapter=None if plan is None else plan.start,
        report=run.runtime.say,
    )
    if in_4_bits(model) and (reason := run.runtime.refusal("quantize")) is not None:
        raise ValueError(f"model.path={run.config.model.path}: weights in 4 bits under {run.runtime.engine}: {reason}")
    if plan is not None:
        on_experts = bool(target_parameters(model, plan.config))  # not of the weights of linear layers
        if on_experts and run.config.train.compile:
            raise ValueError(NOT_COMPILED)
        if on_experts and (reason := run.runtime.refusal("adapter on experts")) is not None:
            raise ValueError(f"adapter.target_parameters under {run.runtime.engine}: {reason}")
        if names := left_out(model, plan.config):
            run.runtime.say(
                f"adapter.target=all-linear is without {shown(names)}, which peft takes for names of experts: it "
                "adapts them without dropout and DoRA, on a base that is not in 4 bits"
            )
        if run.runtime.is_main:  # on others transformers saves nothing
            require_loading(model, plan.config)
    first_new = None if plan is None else min(plan.new_token_ids, default=None)
    return Loaded(model, plan, base_facts(model, first_new, trunk_only=kind.head is not None))


def _linear_dtype(run: Run[TuningConfig], base: TunedModelConfig) -> torch.dtype:
    """What the frozen linear layers under an adapter are held in."""
    in_half = run.config.train.precision != "fp32" and not run.runtime.shards_parameters
    if base.dtype == "fp32" or not in_half or is_adapter(base.path):
        return torch.float32  # an adapter's model is merged in fp32, which 16 bits would round
    dtype = saved_dtype(base.path, base.revision, base.trust_remote_code)
    if dtype != torch.float32:
        run.runtime.say(f"the base's linear layers stay in {name_of(dtype)}, as they are saved (model.dtype)")
    return dtype


def load_with_adapter(
    run: Run[TuningConfig], base: TunedModelConfig, chat: ChatTokenizer, kind: ModelKind = LANGUAGE
) -> Loaded:
    """The model that a tuning run starts from, with its adapter in it if it has one."""
    loaded = load_base(run, base, chat, kind)
    if loaded.plan is not None:
        loaded.plan.put_into(loaded.model)
        if not in_4_bits(loaded.model):
            hold_linear_layers(loaded.model, _linear_dtype(run, loaded_section(base, loaded.plan)))
    return loaded


def start_facts(loaded: Loaded, model: PreTrainedModel) -> dict[str, Any]:
    """What the model that a run starts from is known by: its base, and the adapter that goes on being trained.

    `model`: with the adapter in it.
    """
    facts = dict(loaded.base)
    if loaded.plan is not None and loaded.plan.start is not None:
        facts["adapter"] = base_facts(model, whole=True)["weights"]
    return facts


def new_tokens(
    config: RecipeConfig,
    base: PretrainedModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    known_new: Sequence[int] = (),
    *,
    report: Report,
) -> tuple[int, ...]:
    """Ids of the tokens that the model of `base` has no trained rows for, as its own tokenizer lacks them; reported.

    `known_new`: those of a chat template, which are all if the tokenizer is the model's own. Raises ValueError for a
    tokenizer in which ids of the model's tokens belong to others.
    """
    key = f"tokenizer.path={config.tokenizer.path}"
    if config.tokenizer.path is None or base.path is None:
        return tuple(known_new)
    try:
        own = load_tokenizer(base.path, base.revision, base.trust_remote_code).get_vocab()
    except ValueError:
        report(f"warning: {key}: model.path={base.path} has no tokenizer to compare it with")
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
        report(f"warning: {key}: {missing:,} tokens of model.path={base.path} are not in it")
    new = sorted(token_id for token, token_id in vocabulary.items() if token not in own)
    if set(new) - set(known_new):
        report(
            f"{key}: {len(new):,} tokens that model.path={base.path} does not know, such as {by_id[new[0]]!r}: their "
            "rows start at the mean of the others"
        )
    return tuple(new)


def trained_report(run: Run[TuningConfig], module: nn.Module) -> str:
    """One line on what is trained and the memory it takes."""
    train = run.config.train
    return adapter_report(module, OPTIMIZER_BYTES[run.config.optim.name], recomputes=train.activation_checkpointing)


CHECKING = "checking the model: packed documents against single ones"
"""What a recipe says before a comparison that takes seconds, of a large model more."""


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
        "chat_template": None if template is None else fingerprint(_one_text(template)),
    }


def _one_text(template: str | Mapping[str, str]) -> str:
    """A chat template, or several by name, as one text."""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def data_names(data: Stores | Prompts) -> dict[str, list[str]]:
    """What identifies the content of each source, trained on and held out."""
    if isinstance(data, Prompts):
        return data.names
    names, num_train = data.names, len(data.train)
    return {"train": names[:num_train], "eval": names[num_train:]}


def export_spec(
    run: Run[TuningConfig],
    base: TunedModelConfig,
    loaded: Loaded,
    chat: ChatTokenizer,
    kind: ModelKind = LANGUAGE,
    shape: PreTrainedConfig | None = None,
) -> ExportSpec:
    """What the exported folder is made from, besides the weights: it stops where the run's chats end a turn.

    `shape`: of the model in training, if it is not the loaded one's.
    """
    config, plan = run.config, loaded.plan
    start = None if plan is None else plan.start
    trust = config.model.trust_remote_code
    known = dict(loaded.base) | ({"packed": True} if in_4_bits(loaded.model) else {})
    if config.model.quantize is not None:
        del known["weights"]  # in 4 bits they cannot be compared with others
    return ExportSpec(
        shape or loaded.model.config,
        chat.tokenizer,
        kind,
        dtype=saved_dtype(base.path, base.revision, trust),
        stop_ids=chat.encoder.end_of_turn_ids if kind.generates else (),
        trust_remote_code=trust,
        generation=given_generation(loaded.model),
        origin=origin_of(config.model.path, config.model.revision) if start is None else origin_of_base(start),
        adapter=None if plan is None else plan.config,
        base={} if plan is None else known,
    )
