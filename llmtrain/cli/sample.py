"""Continue a text with a trained model: `llmtrain sample RUN_OR_MODEL PROMPT`."""

from __future__ import annotations

import argparse
from typing import Any

from llmtrain.system.terminal import say_error
from llmtrain.system.visible import require_unicode

NUM_TOKENS = 160
TEMPERATURE = 0.7
TOP_K = 40


def sample(path: str, prompt: str, seed: int = 0) -> str:
    """The prompt and its continuation by the model of a path, up to NUM_TOKENS tokens, or to its last position.

    Special tokens of the continuation are shown, but not the one, or the stop text, that ended it. Raises ValueError
    for a prompt that leaves no room in the model's positions.
    """
    import torch

    from llmtrain.data.tokenize import TextEncoder
    from llmtrain.models.text_part import require_rows
    from llmtrain.replies.reply import Speaker

    speaker = Speaker.opened(path)
    tokenizer = speaker.tokenizer
    prefix = TextEncoder(tokenizer).prefix  # and no EOS, which some tokenizers put after a text
    ids: list[int] = tokenizer(require_unicode(prompt, "the prompt"), add_special_tokens=False)["input_ids"]
    if tuple(ids[: len(prefix)]) != prefix:
        ids = [*prefix, *ids]
    ids = ids or [id_ for id_ in (tokenizer.bos_token_id, tokenizer.eos_token_id) if id_ is not None][:1]
    if not ids:
        raise ValueError("the prompt has no tokens, and the tokenizer no token to begin with: give a text")
    require_rows(speaker.model, ids, tokenizer)
    room = speaker.room(ids)
    if room == 0:
        raise ValueError(
            f"the prompt has {len(ids):,} tokens and the model {speaker.positions:,} positions: shorten it"
        )
    num_tokens = NUM_TOKENS if room is None else min(NUM_TOKENS, room)
    torch.manual_seed(seed)
    generate: Any = speaker.model.generate
    with torch.inference_mode():
        output = generate(
            input_ids=torch.tensor([ids], device=speaker.model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=speaker.model.device),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            max_new_tokens=num_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **speaker.ending.settings(len(ids)),
        )
    written = output[0, len(ids) :].tolist()
    end = speaker.ending.of(written)
    if not end.stopped and num_tokens < NUM_TOKENS:
        say_error(f"(cut at the model's {speaker.positions:,} positions)")
    before, whole = (
        str(tokenizer.decode(part, skip_special_tokens=False))
        for part in (ids, [*ids, *(written[:-1] if end.stopped and end.stop_text is None else written)])
    )
    continuation = whole.removeprefix(before)
    return prompt + (continuation if end.stop_text is None else continuation.partition(end.stop_text)[0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL")
    parser.add_argument("prompt", metavar="PROMPT")


def run(arguments: argparse.Namespace) -> None:
    """Print one continuation."""
    print(sample(arguments.model, arguments.prompt))
