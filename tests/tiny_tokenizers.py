"""Tokenizers for tests, made in milliseconds."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = "the quick brown fox jumps over the lazy dog and the cat sat on the mat"


def byte_level_bpe(*, adds_bos: bool = True, vocab_size: int = 300, name: str = "tiny") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with <bos> 0, <eos> 1, <pad> 2; like GPT-2's, it splits at spaces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([f"{WORDS}\n{WORDS}"], trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return _wrapped(backend, name)


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """A tokenizer that marks the start of a text, as SentencePiece ones do, so that it cannot be cut anywhere."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<bos>", "<eos>", "<pad>", "<unk>"], show_progress=False
    )
    backend.train_from_iterator([f"{WORDS}\n{WORDS}"], trainer)
    return _wrapped(backend, "metaspace")


def _wrapped(backend: Tokenizer, name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>" if backend.token_to_id("<unk>") is not None else None,
        name_or_path=name,
    )
