"""The exported folder: what transformers loads from it is the model that was trained."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_run import MODEL, write_tokenizer
from tiny_tokenizers import byte_level_bpe
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

from llmtrain.batch import PackedTokens
from llmtrain.config.sections import ModelConfig
from llmtrain.models.folders.bases import origin_of
from llmtrain.models.folders.card import CardFacts, as_model_card, method, model_card
from llmtrain.models.folders.card_before_after import Change, Changes
from llmtrain.models.folders.kind import LANGUAGE
from llmtrain.models.folders.model import ExportSpec, export_model, save_tokenizer
from llmtrain.models.load import load_model
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.system.visible import visible

CARD = "---\nlibrary_name: transformers\n---\n"
TOKENS = torch.tensor([256, *range(65, 91), 257])


@dataclass(frozen=True)
class Exported:
    """A model as it was trained, and the folder it was exported to."""

    trained: CausalLMLoss
    folder: Path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def export(
    folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32, **model: Any
) -> Exported:
    config = ModelConfig(**model)
    trained = wrap_causal_lm(load_model(config, tokenizer, max_seq_len=32, seed=0), "segments", 32, torch.device("cpu"))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():  # away from an initialisation in which norms are all ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    shape = trained.model.config
    export_model(folder / "model", weights, CARD, ExportSpec(shape, tokenizer, dtype=dtype))
    return Exported(trained, folder / "model")


def loss_in_training(trained: CausalLMLoss) -> Tensor:
    """Mean cross-entropy of TOKENS as the recipe computes it."""
    labels = torch.cat([TOKENS[1:], torch.tensor([-100])])
    num_trained = len(TOKENS) - 1
    batch = PackedTokens(TOKENS, labels, torch.arange(len(TOKENS)), (len(TOKENS),), num_trained, (0,))
    trained.eval()
    with torch.no_grad():
        return trained(batch).cross_entropy / num_trained


def loss_as_loaded(folder: Path) -> Tensor:
    """Mean cross-entropy of TOKENS as anyone computes it with transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=TOKENS[None], labels=TOKENS[None]).loss


MODELS: dict[str, dict[str, Any]] = {
    "tied llama": {"config": MODEL},
    "untied llama": {"config": {**MODEL, "tie_word_embeddings": False}},
    "gpt2": {"architecture": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2}},
    "qwen3": {"architecture": "qwen3", "config": {**MODEL, "head_dim": 16}},
    "gemma2": {"architecture": "gemma2", "config": {**MODEL, "head_dim": 16}},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_loaded_model_has_the_loss_of_the_trained_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    exported = export(tmp_path, tokenizer, **MODELS[name])
    torch.testing.assert_close(
        loss_as_loaded(exported.folder), loss_in_training(exported.trained), rtol=1e-5, atol=1e-5
    )


def test_bf16_weights_are_the_trained_ones_rounded(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    exported = export(tmp_path, tokenizer, torch.bfloat16, config=MODEL)
    stored = load_file(exported.folder / "model.safetensors")
    trained = {name.removeprefix("model."): p.detach() for name, p in exported.trained.named_parameters()}
    assert stored.keys() == trained.keys()
    for name, tensor in stored.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, trained[name].bfloat16()), name
    assert AutoModelForCausalLM.from_pretrained(exported.folder).dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_stored_once(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, tied: bool) -> None:
    exported = export(tmp_path, tokenizer, config={**MODEL, "tie_word_embeddings": tied})
    assert ("lm_head.weight" in load_file(exported.folder / "model.safetensors")) != tied
    loaded = AutoModelForCausalLM.from_pretrained(exported.folder)
    shared = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert shared == tied


def test_it_generates_with_a_cache_what_it_generates_without(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = export(tmp_path, tokenizer, config=MODEL).folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache
    prompt = AutoTokenizer.from_pretrained(folder)("abc", return_tensors="pt", return_token_type_ids=False)
    cached, plain = (
        model.generate(**prompt, max_new_tokens=12, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert cached.shape[1] > prompt["input_ids"].shape[1] and torch.equal(cached, plain)


def test_generation_stops_at_the_end_of_a_document(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = export(tmp_path, tokenizer, config=MODEL).folder
    settings = GenerationConfig.from_pretrained(folder)
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (256, 257, 258)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[257] = 100 * model.model.norm.weight.sign()
        prompt = TOKENS[None, :5]
        hidden = model.model(prompt).last_hidden_state[0, -1]
        model.get_output_embeddings().weight[257] = 100 * hidden
        assert model.generate(prompt, max_new_tokens=9)[0, 5:].tolist() == [257]


def test_generation_stops_at_every_token_that_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_model(ModelConfig(config=MODEL), tokenizer, max_seq_len=32, seed=0)
    weights = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    export_model(tmp_path, weights, CARD, ExportSpec(model.config, tokenizer, stop_ids=(258, 257)))
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [258, 257]


def test_the_tokenizer_comes_back(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = AutoTokenizer.from_pretrained(export(tmp_path, tokenizer, config=MODEL).folder)
    text = "naïve 日本\n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_of_another_architecture_are_not_written(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, change: str
) -> None:
    exported = export(tmp_path, tokenizer, config=MODEL)
    weights = {name: parameter.detach() for name, parameter in exported.trained.named_parameters()}
    if change == "missing":
        del weights["model.model.norm.weight"]
    else:
        weights["model.model.other.weight"] = torch.zeros(2)
    with pytest.raises(ValueError, match="has no place in what transformers makes of the configuration of llama"):
        export_model(tmp_path / "bad", weights, CARD, ExportSpec(exported.trained.model.config, tokenizer))
    assert not (tmp_path / "bad").exists()


def card_of(base: str | None, **changed: Any) -> tuple[dict[str, Any], str]:
    """The front matter and the body of a card, of a model trained from a base."""
    model = {"path": base}
    account = {"kept": {"train": {"documents": 40}}, "tokens": {"train": {"tokens": 5000}}}
    facts = CardFacts(
        config={
            "run": {"dir": "/secret/runs/mine/"},
            "model": model,
            "data": {"train": [{"path": "/secret/faq.csv"}, {"path": "org/rows"}]},
        },
        ledger={"train": [account], "training": {"tokens_trained": 9000}},
        before={"eval_loss": 2.5},
        after={"eval_loss": 1.25},
        num_parameters=1234,
        origin=None if base is None else origin_of(base),
    )
    card = ModelCard(model_card(replace(facts, **changed)))
    return card.data.to_dict(), card.text


def test_the_card_is_what_a_person_would_publish() -> None:
    front, body = card_of("org/base")
    assert (front["library_name"], front["base_model"]) == ("transformers", "org/base")
    assert body.strip().startswith("# mine\n")
    assert "[org/base](https://huggingface.co/org/base)" in body and "1,234 parameters" in body
    assert "| `faq.csv` | 40 | 5,000 |" in body and "datasets/org/rows" in body and "9,000 tokens" in body
    assert "| loss (`eval_loss`) | 2.5 | 1.25 |" in body
    assert "## Limits" in body and "Licence:** unknown" in body
    assert "/secret" not in body and len(body.splitlines()) < 70


def test_the_card_of_a_muon_run_has_muons_learning_rate() -> None:
    optim = {"lr": 1e-3, "muon_lr": 5e-3, "schedule": "linear"}
    train = {"steps": 9, "precision": "fp32"}
    said = {name: method({"train": train, "optim": {**optim, "name": name}}) for name in ("adamw", "muon")}
    assert "adamw at a peak learning rate of 0.001 (linear)" in said["adamw"]
    assert "muon at a peak learning rate of 0.005 (AdamW for what is no hidden matrix: 0.001) (linear)" in said["muon"]


def test_the_card_names_the_licence_that_its_bases_card_names(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n", encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    front, body = card_of(str(tmp_path))
    assert front["license"] == "apache-2.0" and "base_model" not in front
    assert "Licence:** apache-2.0" in body and str(tmp_path.parent) not in body


def test_a_bases_card_that_is_no_yaml_names_no_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\ndate: 2020-13-45\n---\n", encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "Licence:** unknown" in card_of(str(tmp_path))[1]


def test_the_cards_example_generates(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").symlink_to(export(tmp_path, tokenizer, config=MODEL).folder)
    monkeypatch.chdir(tmp_path)
    for chats in (False, True):
        _, body = card_of(None, chats=chats)
        code = body.split("```python\n")[1].split("```")[0].replace("max_new_tokens=200", "max_new_tokens=2")
        if not chats:
            exec(code, {})
        assert '"mine"' in code and ("apply_chat_template" in code) == chats


def test_a_card_without_held_out_data_says_so() -> None:
    assert "Nothing was held out" in card_of(None, before={}, after={})[1]


def test_the_tokenizer_warns_at_the_models_positions_whatever_its_field_is_called(tmp_path: Path) -> None:

    for number, shape in enumerate((GPT2Config(n_positions=48), LlamaConfig(max_position_embeddings=48))):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_tokenizer(folder, ExportSpec(shape, byte_level_bpe()))
        assert AutoTokenizer.from_pretrained(folder).model_max_length == 48


def test_names_of_others_are_shown_in_a_card_and_make_no_markdown(tmp_path: Path) -> None:
    evil = 'a`b\x1b[2J\u202e| c |\n# Free <script>"'
    base = tmp_path / evil.replace("/", "")
    base.mkdir()
    (base / "README.md").write_text('---\nlicense: "mit\\n\\n# Not us <b>"\n---\n', encoding="utf-8")
    (base / "config.json").write_text("{}", encoding="utf-8")
    origin = origin_of(str(base))
    assert origin is not None
    config = {"run": {"dir": f"runs/{evil}"}, "model": {}, "data": {"train": [{"path": f"x/{evil}.csv"}]}}
    changes = Changes([Change(f"{evil}: acc", 0, 1, 1, math.nan, math.nan, 5, "better")], [], [f"Not measured: {evil}"])
    for hub_id in (None, "x](http://evil) <b>\n# H"):
        card = model_card(
            CardFacts(config, {}, {}, {}, 1, is_adapter=True, origin=replace(origin, hub_id=hub_id), changes=changes)
        )
        headings = [line for line in card.splitlines() if line.startswith("#")]
        assert headings[0].startswith("# a\\`b") and "\\<script\\>" in headings[0] and len(headings) == 6
        assert visible(card) == card and "](http://evil)" not in card.replace("`x](http://evil)", "")
        table = [line for line in card.splitlines() if line.startswith("| ") and "Free" in line]
        assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [4, 7]
        code = card.split("```python\n")[1].split("\n```")[0]
        named = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert evil in named
        assert evil in [n.value for n in ast.walk(ast.parse(_merged_code(card))) if isinstance(n, ast.Constant)]


def _merged_code(card: str) -> str:
    return as_model_card(card, LANGUAGE).split("```python\n")[1].split("\n```")[0]
