"""tokenizer/train.py: exact round trips, special tokens out of reach, a vocabulary of the size asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import ROOT, run_here
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.config.load import validate
from llmtrain.config.tokenizer import TokenizerTrainConfig
from llmtrain.tokenizers.bpe import MAX_PIECE_CHARS, NUM_BYTES
from llmtrain.tokenizers.train import SourceText, interleave, train_tokenizer

TRAIN = ROOT / "tokenizer" / "train.py"
NUM_SPECIAL = 5 + 16

HOSTILE = {
    "empty": "",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 ☺️ 🇩🇪",
    "right to left": "שלום עולם \u202eمرحبا\u202c \u200f",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x85\u2028\u2029\ufeff",
    "NULs": "\x00\x00a\x00 \x00\n",
    "every special token": "<|bos|>a<|eos|><|pad|> <|im_start|>user\n<|im_end|><|reserved_0|>",
    "lone breaks": "\n",
    "all kinds of breaks": "\r\n\r \n\n\r\n a\r\n\tb\r",
    "trailing spaces": "a   \n   b   ",
    "what normalisation would change": "\u00e9 e\u0301 \ufb01 \u212b \u00c5 \uac00 \u1100\u1161 ｆｕｌｌ ²",
    "combining marks alone": "\u0301\u0302 \u093f\u0939",
    "digits of many scripts": "1234567890 ١٢٣٤ Ⅷ ¾ 3.14159e-10",
    "contractions": "it's IT'S we'll 'tis rock'n'roll 'd'",
    "private use and the last code point": "\ue000\U0010fffd\U0010ffff",
    "no spaces": "全角文字だけの文章には空白がありません。" * 20,
}


def config(tmp_path: Path, **changes: Any) -> TokenizerTrainConfig:
    """A small training configuration over documents that repeat enough to have merges."""
    source = tmp_path / "corpus.jsonl"
    if not source.exists():
        texts = [f"def f{i}(x):\n    return x + {i}  # add {i} to the value of x\n" * 3 for i in range(200)]
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tree = {"output": str(tmp_path / "tokenizer"), "sources": str(source), "vocab_size": 400, "eval_fraction": 0.1}
    return validate(TokenizerTrainConfig, tree | changes)


def trained(options: TokenizerTrainConfig, said: list[str] | None = None) -> PreTrainedTokenizerFast:
    train_tokenizer(options, (said if said is not None else []).append)
    tokenizer = AutoTokenizer.from_pretrained(options.output)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return trained(config(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("specials_are_text", [False, True])
def test_text_comes_back_exactly(tokenizer: PreTrainedTokenizerFast, text: str, specials_are_text: bool) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=specials_are_text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("run", [" ", "a", "\n", "!", "7", " \n", "é", "\u0301"])
def test_very_long_runs_come_back_and_are_cut(tokenizer: PreTrainedTokenizerFast, run: str) -> None:
    text = run * 200_000
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert max(end - start for _, (start, end) in pieces) <= 2 * MAX_PIECE_CHARS + 1


@pytest.mark.slow
def test_every_character_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    texts = ["".join(characters[start : start + 4096]) for start in range(0, len(characters), 4096)]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode(ids) for ids in encoded] == texts


def test_special_tokens_in_text_stay_text_where_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    as_text = tokenizer.encode("<|eos|>", add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.encode("<|eos|>", add_special_tokens=False) == [tokenizer.eos_token_id]
    assert not set(as_text) & set(tokenizer.all_special_ids)


def test_bos_comes_first_and_once(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = tokenizer.encode("x + 1", add_special_tokens=False)
    assert tokenizer.encode("x + 1") == [tokenizer.bos_token_id, *plain]


def test_named_tokens_are_set(tokenizer: PreTrainedTokenizerFast) -> None:
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert named == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert {"<|im_start|>", "<|im_end|>"} < set(tokenizer.all_special_tokens)
    assert tokenizer.model_max_length < 2**31


def test_a_model_folder_of_another_class_does_not_change_the_ids(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    text = "def  f(x):\n\treturn 12345"
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == tokenizer.encode(text)


def test_digits_are_split_in_threes_by_default(tmp_path: Path) -> None:
    source = tmp_path / "numbers.txt"
    source.write_text("20262026 " * 500)
    split, whole = (
        trained(config(tmp_path, output=str(tmp_path / str(on)), sources=str(source), eval_fraction=0, split_digits=on))
        for on in (True, False)
    )
    assert max(len(token) for token in split.tokenize("20262026")) <= 3
    assert "20262026" in whole.tokenize("20262026")


@pytest.mark.parametrize("vocab_size", [NUM_BYTES + NUM_SPECIAL, 300, 400])
def test_the_vocabulary_has_the_size_asked_for(tmp_path: Path, vocab_size: int) -> None:
    tokenizer = trained(config(tmp_path, vocab_size=vocab_size))
    assert len(tokenizer) == vocab_size
    assert set(tokenizer.get_vocab().values()) == set(range(vocab_size))


def test_bytes_alone_make_one_token_a_byte(tmp_path: Path) -> None:
    options = config(tmp_path, vocab_size=NUM_BYTES + 5, special_tokens={"reserved": 0})
    text = "naïve 🙂\n"
    assert len(trained(options).encode(text, add_special_tokens=False)) == len(text.encode())


def test_a_text_too_small_for_the_vocabulary_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    tokenizer = trained(config(tmp_path, vocab_size=5000), said)
    assert len(tokenizer) < 5000
    assert any(f"vocab_size=5000: the vocabulary is {len(tokenizer)}" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": NUM_BYTES + NUM_SPECIAL - 1}, f"give at least {NUM_BYTES + NUM_SPECIAL}"),
        ({"special_tokens": {"eos": "<|bos|>"}}, "special_tokens.bos='<|bos|>' is also the text of another"),
        ({"special_tokens": {"eos": "value"}}, "special_tokens.eos='value' could be learnt from text"),
        ({"special_tokens": {"eos": ""}}, "special_tokens.eos='' could be learnt from text"),
        ({"sources": []}, "sources names no source"),
        ({"sources": "nowhere.txt"}, "nowhere.txt"),
        ({"sources": [{"path": "a.txt", "weight": 1}]}, "weights share out max_bytes"),
        ({"eval_fraction": 0.999999}, "every document is held out"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    options = config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        train_tokenizer(options, print)
    assert not Path(options.output).exists()


def test_text_cannot_be_merged_into_a_special_token(tmp_path: Path) -> None:
    source = tmp_path / "specials.txt"
    source.write_text("<|eos|><|im_end|> " * 2000)
    tokenizer = trained(config(tmp_path, sources=str(source), eval_fraction=0, vocab_size=320))
    ids = tokenizer.encode("<|eos|> <|im_end|>", add_special_tokens=False, split_special_tokens=True)
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_report_tells_bytes_per_token_of_each_source(tmp_path: Path) -> None:
    options = config(tmp_path)
    prose = tmp_path / "prose.jsonl"
    prose.write_text(
        "".join(json.dumps({"text": f"The {i}th sentence is plain prose. " * 4}) + "\n" for i in range(100))
    )
    sources = [{"path": options.sources[0].path}, {"path": str(prose)}]
    tokenizer = trained(config(tmp_path, sources=sources))
    report = json.loads((Path(options.output) / "training.json").read_text())
    assert report["vocab_size"] == len(tokenizer)
    assert [source["path"] for source in report["sources"]] == [source["path"] for source in sources]
    for source in report["sources"]:
        assert 0 < source["held_out_bytes"] < source["bytes"]
        assert source["bytes_per_token"] == source["held_out_bytes"] / source["held_out_tokens"]


def test_training_again_is_done_already_and_another_configuration_is_refused(tmp_path: Path) -> None:
    train_tokenizer(config(tmp_path), print)
    written = (tmp_path / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    said: list[str] = []
    train_tokenizer(config(tmp_path), said.append)
    assert "already" in said[0]
    assert (tmp_path / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="vocab_size is 400 there and 300 here"):
        train_tokenizer(config(tmp_path, vocab_size=300), print)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no tokenizer of ours"):
        train_tokenizer(config(tmp_path), print)


def test_sources_share_the_bytes_by_weight(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "aaaaaaaa a"}\n' * 1000)
    (tmp_path / "b.jsonl").write_text('{"text": "bbbbbbbb b"}\n' * 1000)
    paths = (("a", 3), ("b", 1))
    sources = [{"path": str(tmp_path / f"{name}.jsonl"), "weight": weight} for name, weight in paths]
    options = config(tmp_path, sources=sources, max_bytes=4000)
    texts = [SourceText(source, 0.0) for source in options.sources]
    list(interleave(texts, options.max_bytes))
    assert [text.num_bytes for text in texts] == [3000, 1000]


def test_a_source_that_ends_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "aaaaaaaa a"}\n' * 10)
    (tmp_path / "b.jsonl").write_text('{"text": "bbbbbbbb b"}\n' * 1000)
    options = config(tmp_path, sources=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    texts = [SourceText(source, 0.0) for source in options.sources]
    list(interleave(texts, 4000))
    assert [text.num_bytes for text in texts] == [100, 3900]


def test_two_trainings_write_the_same_bytes(tmp_path: Path) -> None:
    config(tmp_path)
    (tmp_path / "train.yaml").write_text(f"sources: {tmp_path}/corpus.jsonl\nvocab_size: 400\noutput: unset\n")
    arguments = [tmp_path / "train.yaml", f"output={tmp_path / 'here'}"]
    assert run_here(*arguments, recipe=TRAIN).code == 0
    arguments = [*arguments[:1], f"output={tmp_path / 'there'}"]  # with another seed of Python's hashes
    subprocess.run([sys.executable, TRAIN, *arguments], check=True, capture_output=True)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert one == two


def test_a_bad_row_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "train.yaml").write_text(f"sources: {bad}\noutput: {tmp_path / 'tokenizer'}\n")
    ended = run_here(tmp_path / "train.yaml", recipe=TRAIN)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "bad.jsonl:2" in ended.err
    assert not (tmp_path / "tokenizer").exists()


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4, of course."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "\n6"},
]


def test_a_chat_reads_as_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.apply_chat_template(CHAT[:3], tokenize=False) == (
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n4, of course.<|im_end|>\n"
    )


def test_only_assistant_turns_and_their_ends_are_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    pairs = zip(chat["input_ids"], chat["assistant_masks"], strict=True)
    trained_ids = [token for token, trained in pairs if trained]
    assert tokenizer.decode(trained_ids) == "4, of course.<|im_end|>6<|im_end|>"


@pytest.mark.parametrize("num_messages", [2, 4])
def test_a_prompt_begins_the_ids_of_the_whole_chat(tokenizer: PreTrainedTokenizerFast, num_messages: int) -> None:
    prompt = tokenizer.apply_chat_template(CHAT[:num_messages], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(CHAT[: num_messages + 1])["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert whole.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "robot", "content": "x"}], "not robot"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "system message comes first"),
        ([{"role": "assistant", "content": None}], "must be text"),
    ],
)
def test_a_chat_the_template_cannot_show_is_refused(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        tokenizer.apply_chat_template(messages, tokenize=False)
