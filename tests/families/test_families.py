"""Families of `transformers` in every step against plain transformers, and the page that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from families.steps import STEPS, run_family
from families.table import DOCS, RIGHT, page, read
from families.tiny import VARIANTS, model_types, tiny_config

MECHANISMS = {
    "llama": "attention in packs",
    "gemma2": "a softcap at the head, and windows",
    "gemma3n_text": "embeddings of each layer, activations changed in place",
    "olmo_clipped": "products clipped in place",
    "gpt_oss": "sinks, and experts",
    "qwen3_moe": "experts",
    "deepseek_v3": "latent attention",
    "qwen3_5": "delta nets, in a multimodal folder",
    "mistral3": "a multimodal folder, and a reward head of ours",
    "mamba": "states alone",
    "jamba": "attention, states and experts",
    "falcon": "rows of documents",
}
"""One family for each way in which models differ."""


@pytest.mark.slow
@pytest.mark.parametrize("family", MECHANISMS)
def test_a_family_of_each_mechanism_trains_as_plain_transformers_does(family: str, tmp_path: Path) -> None:
    outcomes = run_family(family, tmp_path, ("pretrain", "lora", "reward"))
    assert {step for step, each in outcomes.items() if each.verdict not in RIGHT} == set(), outcomes


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*model_types(), *VARIANTS])
def test_no_family_is_wrong_or_crashes(family: str, tmp_path: Path) -> None:
    outcomes = run_family(family, tmp_path, STEPS)
    assert {step for step, each in outcomes.items() if each.verdict in ("WRONG", "crash")} == set(), outcomes


def test_the_page_of_families_is_what_the_results_say() -> None:
    assert DOCS.read_text(encoding="utf-8") == page(read())


def test_every_family_that_is_shrunk_keeps_its_kinds_of_layer() -> None:
    assert set(tiny_config("gemma3_text", 272).layer_types) == {"sliding_attention", "full_attention"}
    for family in ("jamba", "bamba", "lfm2", "granitemoehybrid", "qwen3_next"):
        shape = tiny_config(family, 272)
        kinds = shape.layers_block_type if family in ("jamba", "bamba") else shape.layer_types
        assert len(set(kinds)) == 2, family
    assert tiny_config("gemma3", 272).text_config.vocab_size == 272  # of the configuration inside
