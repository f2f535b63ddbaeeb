"""FLOPs of a token: what multiplies it counts, with and without a gradient."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_run import MODEL, write_tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import ModelConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.flops import training_flops
from llmtrain.models.load import load_model

NEW_IDS = (259, 260)  # after the 259 tokens of the tiny tokenizer, among the 320 rows of the tiny model
UNTIED = {**MODEL, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def tiny(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> PreTrainedModel:
    return load_model(ModelConfig(config=config), tokenizer, max_seq_len=32, seed=0)


def test_flops_count_what_multiplies_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    layers, width, vocabulary = 3, 32, 320
    matrices = layers * (width * (32 + 16 + 16 + 32) + 3 * width * 96)
    vectors = layers * 2 * width + width
    for tied in (True, False):
        model = tiny(tokenizer, {**MODEL, "tie_word_embeddings": tied})
        flops = training_flops(model)
        assert flops.per_token == 6 * (matrices + vectors)
        assert flops.per_trained_token == 6 * vocabulary * width
        assert flops.per_attended_token == 12 * layers * width


@pytest.mark.parametrize("config", [MODEL, UNTIED], ids=["tied", "untied"])
def test_flops_count_frozen_weights_without_their_gradient(
    tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]
) -> None:
    layers, width, rank = 3, 32, 4
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 96), (32, 96), (96, 32)]
    body, head = layers * sum(a * b for a, b in shapes) + (2 * layers + 1) * width, 320 * width
    adapter, rows = layers * rank * sum(a + b for a, b in shapes), len(NEW_IDS) * width
    model = tiny(tokenizer, config)
    add_adapter(model, AdapterConfig(kind="lora", rank=rank), NEW_IDS, 0)
    step = {"input_tokens": 1, "tokens": 1, "attended_tokens": 0}
    assert training_flops(model).of_step(step) == 4 * (body + head) + 6 * (adapter + rows)
