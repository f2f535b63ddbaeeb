"""FLOPs of a token: what multiplies it counts, with and without a gradient."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_run import MODEL, write_tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.sections import AdapterConfig, ModelConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.flops import flops_per_token
from llmtrain.models.load import load_model

NEW_IDS = (259, 260)  # after the 259 tokens of the tiny tokenizer, among the 320 rows of the tiny model
UNTIED = {**MODEL, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def tiny(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> PreTrainedModel:
    return load_model(ModelConfig(config=config), tokenizer, max_seq_len=32, seed=0)


def test_flops_count_what_multiplies_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    layers, width, vocabulary, context = 3, 32, 320, 16.0
    matrices = layers * (width * (32 + 16 + 16 + 32) + 3 * width * 96) + vocabulary * width
    vectors = layers * 2 * width + width
    attention = 12 * layers * width * context / 2
    for tied in (True, False):
        model = tiny(tokenizer, {**MODEL, "tie_word_embeddings": tied})
        assert flops_per_token(model, context) == 6 * (matrices + vectors) + attention


@pytest.mark.parametrize("config", [MODEL, UNTIED], ids=["tied", "untied"])
def test_flops_count_frozen_weights_without_their_gradient(
    tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]
) -> None:
    layers, width, context, rank = 3, 32, 16.0, 4
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 96), (32, 96), (96, 32)]
    body, head = layers * sum(a * b for a, b in shapes) + (2 * layers + 1) * width, 320 * width
    adapter, rows = layers * rank * sum(a + b for a, b in shapes), len(NEW_IDS) * width
    model = tiny(tokenizer, config)
    add_adapter(model, AdapterConfig(kind="lora", rank=rank), NEW_IDS, 0)
    expected = 4 * (body + head) + 6 * (adapter + rows) + 12 * layers * width * context / 2
    assert flops_per_token(model, context) == expected
