"""A model that says what a test wants: which token comes after a position, whatever the text before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tiny_run import write_tokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

POSITIONS = 256


def scripted_tokenizer(
    folder: Path, special: Sequence[str], template: str | None, stop: str = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with special tokens, whose EOS is `stop`."""
    write_tokenizer(folder, special_tokens=("<|bos|>", stop, "<|pad|>"))
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_scripted(
    folder: Path, tokenizer: PreTrainedTokenizerFast, says: Mapping[int, Sequence[int]], stops: Sequence[int] | None
) -> Path:
    """A model that answers a prompt of n tokens with the ids `says[n]`, and its tokenizer, in a folder.

    `stops`: the EOS ids of its generation config. Positions that no script covers are followed by letters.
    """
    letters = torch.tensor(tokenizer("abc", add_special_tokens=False)["input_ids"])
    next_token = letters[torch.arange(POSITIONS) % len(letters)]
    for length, ids in says.items():
        next_token[length - 1 : length - 1 + len(ids)] = torch.tensor(ids)
    shape = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=POSITIONS,
        n_layer=1,
        n_head=1,
        n_positions=POSITIONS,
        n_inner=8,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.wpe.weight.copy_(torch.eye(POSITIONS))
        model.lm_head.weight[next_token, torch.arange(POSITIONS)] = 1.0
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None if stops is None else list(stops)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
