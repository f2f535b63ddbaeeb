"""Text to ids: the specials a document gets, exactly once, and equality of pieces with the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import WORDS, byte_level_bpe, metaspace_bpe
from tokenizers import processors

from llmtrain.data.text import cut_pieces
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


def test_a_fingerprint_tells_tokenizers_apart_and_outlives_saving(tmp_path: Path):
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
    with pytest.raises(ValueError, match="no tokenizer can be loaded") as raised:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(raised.value)
