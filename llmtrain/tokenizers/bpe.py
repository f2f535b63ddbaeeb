"""Byte-level BPE, learnt from text: what is cut, what is merged, what is kept out of reach of the text.

Text is cut into pieces by a pattern; merges are learnt and applied within a piece, on its bytes (Sennrich
et al. 2016; on bytes, Radford et al. 2019). Every byte has a token, so any text comes back exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from llmtrain.config.tokenizer import SpecialTokens, TokenizerTrainConfig
from llmtrain.data.chat.default_template import chat_template

NUM_BYTES = 256

MAX_PIECE_CHARS = 1024
"""Bounds every run in the pattern: a megabyte of one character must not become one piece, on which merging
is slow, nor exhaust the regex engine's backtracking (Oniguruma gives up after ten million steps)."""

MODEL_MAX_LENGTH = 1 << 20
"""Tokens; a tokenizer itself has no limit, and a length beyond 64 bits trips other libraries."""


def split_pattern(split_digits: bool) -> str:
    """The regular expression that cuts text into pieces, in the manner of GPT-4 and Llama 3.

    A word takes the space or sign before it; numbers are separate; signs take a space before and breaks
    after them; breaks take the spaces before them; of other spaces the last goes to what follows. Marks
    (accents, vowel signs) count as letters, so that words of every script stay whole.
    """
    run = f"{{1,{MAX_PIECE_CHARS}}}"
    optional_run = f"{{0,{MAX_PIECE_CHARS}}}"
    letter, number, sign = r"[\p{L}\p{M}]", r"\p{N}", r"[^\s\p{L}\p{M}\p{N}]"
    space, line_break = r"[^\S\r\n]", r"[\r\n]"
    return "|".join(
        (
            r"'(?i:[sdmt]|ll|ve|re)(?!\p{L})",
            rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}]?{letter}{run}",
            rf"{number}{{1,3}}" if split_digits else rf"{number}{run}",
            rf" ?{sign}{run}{line_break}{optional_run}",
            rf"{space}{optional_run}{line_break}{run}",
            rf"{space}{run}(?!\S)",
            r"\s",
        )
    )


def special_token_list(config: TokenizerTrainConfig) -> list[str]:
    """Every special token, in the order of its id.

    Raises ValueError if two are equal, if text could be merged into one, or if bytes and special
    tokens alone are more than the vocabulary.
    """
    named = config.special_tokens.model_dump(exclude={"reserved"})
    tokens = [*named.values(), *(f"<|reserved_{i}|>" for i in range(config.special_tokens.reserved))]
    pre_tokenizer = _pre_tokenizer(config.split_digits)
    for name, token in named.items():
        if tokens.count(token) > 1:
            raise ValueError(f"special_tokens.{name}={token!r} is also the text of another special token")
        if len(pre_tokenizer.pre_tokenize_str(token)) < 2:
            raise ValueError(
                f"special_tokens.{name}={token!r} could be learnt from text as an ordinary token: "
                f"give it signs at both ends, as in <|{name}|>"
            )
    least = NUM_BYTES + len(tokens)
    if config.vocab_size < least:
        raise ValueError(
            f"vocab_size={config.vocab_size} is smaller than {NUM_BYTES} bytes and {len(tokens)} special tokens: "
            f"give at least {least}"
        )
    return tokens


def train_bpe(texts: Iterator[str], config: TokenizerTrainConfig) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` entries: special tokens, bytes, merges by falling count.

    The vocabulary is smaller where the texts hold too few pairs. Raises what `texts` raises, and ValueError
    as `special_token_list` does.
    """
    special_tokens = special_token_list(config)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(config.split_digits)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = config.special_tokens.bos
    tokenizer.post_processor = TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def as_transformers(tokenizer: Tokenizer, tokens: SpecialTokens) -> PreTrainedTokenizerFast:
    """The tokenizer with the names of its special tokens and its chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        extra_special_tokens=[tokens.start_of_turn, tokens.end_of_turn],
        chat_template=chat_template(tokens),
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _pre_tokenizer(split_digits: bool) -> PreTokenizer:
    split = Split(Regex(split_pattern(split_digits)), behavior="isolated")
    return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
