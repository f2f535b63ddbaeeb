"""Each trained parameter has one kind, by which its optimizer is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_run import MODEL, write_tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import ModelConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.adapters.weight_sharing import frozen_copy, shared_copy
from llmtrain.models.load import load_model
from llmtrain.models.param_kinds import parameters_by_kind
from llmtrain.models.wrappers.actor_critic import ActorCritic, ValueHead
from llmtrain.models.wrappers.checks import wrap_causal_lm

NEW_IDS = (259, 260)  # after the 259 tokens of the tiny tokenizer, among the 320 rows of the tiny model
UNTIED = {**MODEL, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def tiny(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> PreTrainedModel:
    return load_model(ModelConfig(config=config), tokenizer, max_seq_len=32, seed=0)


def test_every_parameter_has_one_kind(tokenizer: PreTrainedTokenizerBase) -> None:
    for tied in (True, False):
        model = tiny(tokenizer, {**MODEL, "tie_word_embeddings": tied})
        kinds = parameters_by_kind(model)
        assert sorted(map(id, model.parameters())) == sorted(id(p) for members in kinds.values() for p in members)
        assert [id(p) for p in kinds["embedding"]] == [id(model.get_input_embeddings().weight)]
        assert len(kinds["head"]) == (0 if tied else 1)
        assert {p.ndim for p in kinds["vector"]} == {1} and {p.ndim for p in kinds["hidden"]} == {2}


@pytest.mark.parametrize("config", [MODEL, UNTIED], ids=["tied", "untied"])
def test_every_trained_parameter_has_one_kind(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> None:
    model = tiny(tokenizer, config)
    add_adapter(model, AdapterConfig(kind="dora", rank=4), NEW_IDS, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = {kind: {names[id(p)] for p in members} for kind, members in parameters_by_kind(model).items()}
    assert sorted(name for members in kinds.values() for name in members) == sorted(
        name for name, p in model.named_parameters() if p.requires_grad
    )
    assert all(".lora_A." in name or ".lora_B." in name for name in kinds["hidden"])
    assert all(".lora_magnitude_vector." in name for name in kinds["vector"])
    assert all(name.endswith(".rows") for name in kinds["embedding"]) and kinds["embedding"]
    assert not kinds["head"]


@pytest.mark.parametrize("adapter", [None, AdapterConfig(kind="lora", rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("separate", [False, True])
def test_a_critic_counts_what_only_it_has(
    tokenizer: PreTrainedTokenizerBase, separate: bool, adapter: AdapterConfig | None
) -> None:
    model = tiny(tokenizer, MODEL)
    critic = shared_copy(model) if adapter is not None else frozen_copy(model).requires_grad_(True)
    for part in (model, critic) if adapter is not None else ():
        add_adapter(part, adapter, (), 0)
    policy = wrap_causal_lm(model, "segments", 32, torch.device("cpu"))
    module = ActorCritic(policy, 1.0, ValueHead(32), critic.base_model if separate else None)
    kinds = module.parameters_by_kind()
    found = [id(parameter) for members in kinds.values() for parameter in members]
    assert sorted(found) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    policys = {id(parameter) for parameter in model.parameters()}
    assert kinds["critic"] and not any(id(parameter) in policys for parameter in kinds["critic"])
    assert module.trunks() == ([model, critic.base_model] if separate else [model])
