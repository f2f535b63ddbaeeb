"""Chat with a tuned model in the terminal: `llmtrain chat RUN_OR_MODEL`.

An empty line or end of input ends it; `/new` starts over. Answers stream as they are written: parts by the response
template of the tokenizer, if it has one, else as the model writes them, special tokens included.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmtrain.cli.options import add_sampling, add_template_kwargs, check_sampling, template_kwargs
from llmtrain.system.terminal import say, say_error

if TYPE_CHECKING:
    from llmtrain.replies.reply import Reply, Speaker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="a folder of a run, a model or an adapter, a GGUF file, or a name of the hub",
    )
    parser.add_argument("--system", help="a system message to begin with")
    add_template_kwargs(parser)
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read a line, answer it, until there is none."""
    import torch

    from llmtrain.data.chat.asked import left_out
    from llmtrain.replies.reply import ReplyOptions, Speaker
    from llmtrain.replies.stream import stream_to

    check_sampling(arguments)
    given = template_kwargs(arguments)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        say(f"loading {arguments.model}")
        with suppress(ImportError):  # not every Python has it; where it is, a line can be edited and had back
            import_module("readline")
    speaker = Speaker.opened(arguments.model, given)
    if is_terminal:
        say("an empty line ends the chat, /new starts over")
    torch.manual_seed(arguments.seed)
    options = ReplyOptions(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    start: list[dict[str, Any]] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    if start and left_out(speaker.tokenizer, [*start, {"role": "user", "content": "hi"}], (), given):
        raise ValueError("--system: the chat template leaves system messages out: the model would never read it")
    messages = list(start)
    while line := _read("> " if is_terminal else ""):
        if line == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        try:
            ids = speaker.prompt_ids(messages)
        except ValueError as error:
            if not is_terminal:
                raise
            say_error(f"({error}: /new starts over)")
            messages.pop()
            continue
        (reply,) = speaker.replies([ids], options, streamer=stream_to(_show, speaker, ids))
        for note in _notes(reply, speaker, ids, options.max_new_tokens):
            say_error(f"({note})")
        messages.append(reply.message)


def _notes(reply: Reply, speaker: Speaker, prompt: list[int], max_new_tokens: int) -> list[str]:
    """What a reply alone does not say."""
    notes = []
    if reply.problem is not None:
        notes.append(f"the tokenizer's response template does not fit this answer: {reply.problem}")
    elif not reply.is_parsed and (found := speaker.special_tokens_in(reply)):
        notes.append(
            f"the answer is shown as the model wrote it, {', '.join(found)} included: the tokenizer does not say what "
            "they mean (it has no response template)"
        )
    if not reply.stopped:
        full = not speaker.fits(prompt, max_new_tokens)
        limit = f"the model's {speaker.positions:,} positions" if full else f"--max-new-tokens={max_new_tokens}"
        notes.append(f"the answer was cut at {limit}")
    return notes


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _read(prompt: str) -> str | None:
    try:
        return input(prompt).strip()
    except EOFError:
        return None
