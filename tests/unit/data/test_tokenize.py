"""Text to ids: the specials a document gets, exactly once, and equality of pieces with the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import WORDS, byte_level_bpe, metaspace_bpe
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llmtrain.data.sources.text import cut_pieces
from llmtrain.data.tokenize import Piece, TextEncoder, load_tokenizer, tokenizer_fingerprint


def document_ids(encoder: TextEncoder, text: str) -> list[int]:
    (ids,) = encoder.encode([text])
    return [*encoder.prefix, *ids.tolist(), *encoder.suffix]


def test_a_document_is_what_the_tokenizer_gives_and_an_eos():
    tokenizer = byte_level_bpe()
    assert document_ids(TextEncoder(tokenizer), WORDS) == [*tokenizer(WORDS).input_ids, tokenizer.eos_token_id]


def test_a_tokenizer_that_adds_no_bos_gets_none():
    assert TextEncoder(byte_level_bpe(adds_bos=False)).prefix == ()


def test_an_eos_that_the_tokenizer_adds_itself_is_not_doubled():
    tokenizer = byte_level_bpe()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    encoder = TextEncoder(tokenizer)
    assert (encoder.prefix, encoder.suffix) == ((0,), (1,))


def test_text_that_spells_special_tokens_stays_text():
    tokenizer = byte_level_bpe()
    text = "a <eos> b<bos>"
    assert tokenizer.eos_token_id in tokenizer(text).input_ids  # so the test can fail
    (ids,) = TextEncoder(tokenizer).encode([text])
    assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_the_tokenizer_itself_is_left_as_it_was():
    tokenizer = byte_level_bpe()
    before = tokenizer.backend_tokenizer.to_str(), tokenizer("a <eos>").input_ids
    TextEncoder(tokenizer).encode(["x <eos>"])
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer("a <eos>").input_ids) == before


def test_truncation_and_padding_of_the_tokenizer_do_not_reach_documents():
    tokenizer = byte_level_bpe()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    encoder = TextEncoder(tokenizer)
    assert [ids.tolist() for ids in encoder.encode([WORDS, "a"])] == [
        ids.tolist() for ids in TextEncoder(byte_level_bpe()).encode([WORDS, "a"])
    ]


def test_batches_come_back_in_order():
    encoder = TextEncoder(byte_level_bpe())
    batches = [[Piece(f"{WORDS} {i} {j}", "train", True, True, 0) for j in range(3)] for i in range(20)]
    found = list(encoder.encode_ahead(batches))
    assert [batch for batch, _ in found] == batches
    for batch, ids_of_batch in found:
        for piece, ids in zip(batch, ids_of_batch, strict=True):
            assert ids.tolist() == encoder.encode([piece.text])[0].tolist()


def test_an_error_of_the_reader_reaches_the_caller():
    def batches():
        yield [Piece("x", "train", True, True, 1)]
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        list(TextEncoder(byte_level_bpe()).encode_ahead(batches()))


def test_pieces_of_a_tokenizer_that_can_be_cut_give_the_ids_of_the_whole():
    encoder = TextEncoder(byte_level_bpe())
    whole = f"{WORDS}\n{WORDS}\n\n  {WORDS} größer\n" * 20
    assert encoder.can_cut(whole)
    pieces = list(cut_pieces([whole], piece_chars=50))
    assert len(pieces) > 20
    assert np.array_equal(np.concatenate(encoder.encode(pieces)), encoder.encode([whole])[0])


def test_a_tokenizer_that_marks_the_start_of_a_text_cannot_be_cut():
    assert not TextEncoder(metaspace_bpe()).can_cut(f"{WORDS}\n{WORDS}\n" * 20)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (70_000, np.uint32)])
def test_ids_take_two_bytes_where_they_fit(vocab_size: int, dtype: type):
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(vocab_size - len(tokenizer))])
    assert TextEncoder(tokenizer).encode(["a"])[0].dtype == dtype


def test_a_fingerprint_differs_between_tokenizers_and_survives_saving(tmp_path: Path):
    tokenizer = byte_level_bpe()
    tokenizer.save_pretrained(tmp_path)
    first = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == first
    assert tokenizer_fingerprint(byte_level_bpe(adds_bos=False)) != first
    assert tokenizer_fingerprint(byte_level_bpe(vocab_size=310)) != first


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./no_such_folder", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("someone/tokenizer", "no tokenizer can be loaded"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_one_clear_line(path: str, message: str):
    with pytest.raises(ValueError, match=f"tokenizer.path={path}: {message}") as raised:
        load_tokenizer(path)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_tokenizer_is_one_clear_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json: name a tokenizer") as raised:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(raised.value)


def characters(text: str, unknown: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each character of a text, and an unknown token or none."""
    vocab = {char: i for i, char in enumerate(sorted(set(text)))}
    if unknown:
        vocab[unknown] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=unknown))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)


def test_a_character_that_would_vanish_is_an_error_that_names_it():
    encoder = TextEncoder(characters(WORDS, unknown=None))
    assert len(encoder.encode([WORDS])[0]) == len(WORDS)
    with pytest.raises(ValueError, match=r"no token for 'ß' \(U\+00DF\) and no unknown token"):
        encoder.encode([WORDS, "the ß"])


def test_what_is_put_around_texts_is_found_for_a_vocabulary_without_latin_letters():
    tokenizer = characters("αβγ", unknown=None)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    assert document_ids(TextEncoder(tokenizer), "βα") == [tokenizer.bos_token_id, 1, 0, tokenizer.eos_token_id]


def test_a_character_that_becomes_the_unknown_token_is_none_that_vanishes():
    encoder = TextEncoder(characters(WORDS, unknown="<unk>"))
    assert encoder.encode(["theß"])[0].tolist()[-1] == encoder.unknown_id


def test_a_text_that_the_tokenizer_fails_on_is_one_clear_line():
    backend = Tokenizer(models.WordLevel(vocab={"a": 0, "b": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=backend))
    with pytest.raises(ValueError, match="the tokenizer cannot encode this text: WordLevel error"):
        encoder.encode(["a c"])


def test_a_sample_with_lines_only_still_tells_whether_spaces_can_be_cut():
    assert TextEncoder(byte_level_bpe()).can_cut("word\n" * 100)
    across_spaces = byte_level_bpe()
    across_spaces.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "merged_with_previous"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    across_spaces.backend_tokenizer.train_from_iterator(
        ["word word word"], trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    assert not TextEncoder(across_spaces).can_cut("word\n" * 100)


def whitespace_words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "été": 1, "a": 2, "<eos>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


def without_decoder() -> PreTrainedTokenizerFast:
    """Every character is a token; decoding puts spaces between them, as the library does without a decoder."""
    backend = Tokenizer(models.WordLevel({char: i for i, char in enumerate("Étéa \n")}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def normalising(normalizer: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    tokenizer = byte_level_bpe()
    tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text", "lost"),
    [
        (byte_level_bpe(), "Été \n\n  日本 \x00 a <eos> e\u0301", {}),
        (metaspace_bpe(), f" {WORDS}", {}),
        (metaspace_bpe(), WORDS, {}),
        (without_decoder(), "Été a\n", {}),
        (normalising(normalizers.Lowercase()), "Été É", {"É": 2}),
        (normalising(normalizers.NFC()), "e\u0301t", {"e": 1, "\u0301": 1}),
        (normalising(normalizers.Strip()), "  a \n", {" ": 3, "\n": 1}),
        (whitespace_words(), "été\n\na", {"\n": 2}),
        (whitespace_words(), "été 日 a", {"日": 1}),
    ],
)
def test_text_that_ids_do_not_give_back_is_lost(
    tokenizer: PreTrainedTokenizerFast, text: str, lost: dict[str, int]
) -> None:
    found = TextEncoder(tokenizer).lost(text)
    if text == "été 日 a":  # decoding leaves out the space beside the unknown word, too
        found.pop(" ", None)
    assert dict(found) == lost
