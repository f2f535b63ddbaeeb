"""Continue a text with a trained model: `llmtrain sample RUN_OR_MODEL PROMPT`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from llmtrain.cli.options import add_drawing, check_sampling
from llmtrain.system.terminal import say_error
from llmtrain.system.visible import require_unicode


@dataclass(frozen=True)
class Drawing:
    """How a continuation is drawn."""

    max_new_tokens: int = 160
    temperature: float = 0.7  # 0: the likeliest token each time
    top_k: int = 40  # likeliest tokens that one is drawn from; 0: all
    seed: int = 0


def sample(path: str, prompt: str, drawing: Drawing = Drawing()) -> str:
    """The prompt and its continuation by the model of a path, at most to the model's last position.

    Special tokens of the continuation are shown, but not the one, or the stop text, that ended it. Raises ValueError
    for a prompt that leaves no room in the model's positions.
    """
    import torch

    from llmtrain.data.tokenize import TextEncoder
    from llmtrain.models.stop_texts import text_before
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
    num_tokens = drawing.max_new_tokens if room is None else min(drawing.max_new_tokens, room)
    torch.manual_seed(drawing.seed)
    settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if drawing.temperature > 0:
        settings = {"do_sample": True, "temperature": drawing.temperature, "top_k": drawing.top_k}
    generate: Any = speaker.model.generate
    with torch.inference_mode():
        output = generate(
            input_ids=torch.tensor([ids], device=speaker.model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=speaker.model.device),
            **settings,
            max_new_tokens=num_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **speaker.ending.settings(len(ids)),
        )
    written = output[0, len(ids) :].tolist()
    end = speaker.ending.of(written)
    if not end.stopped and num_tokens < drawing.max_new_tokens:
        say_error(f"(cut at the model's {speaker.positions:,} positions)")
    before, whole = (
        str(tokenizer.decode(part, skip_special_tokens=False))
        for part in (ids, [*ids, *(written[:-1] if end.stopped and end.stop_text is None else written)])
    )
    continuation = whole.removeprefix(before)
    return prompt + text_before(continuation, end.stop_text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = Drawing()
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run's folder, a model's, an adapter's, or a GGUF file")
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    add_drawing(parser, usual.max_new_tokens, usual.temperature)
    parser.add_argument(
        "--top-k", type=int, default=usual.top_k, help=f"likeliest tokens to draw from, 0: all (default: {usual.top_k})"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print one continuation."""
    check_sampling(arguments)
    drawing = Drawing(arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.seed)
    print(sample(arguments.model, arguments.prompt, drawing))
