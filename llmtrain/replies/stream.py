r"""A reply while it is written: its text, or its parts under their names where the tokenizer has a response template.

[reasoning_content] Easy.
[tool_calls] {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}
[content] 4
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from llmtrain.replies.reply import Speaker
from llmtrain.rewards.score import opened_by

Show = Callable[[str], None]


def stream_to(show: Show, speaker: Speaker, prompt: Sequence[int]) -> BaseStreamer:
    """A streamer for `Speaker.replies` that shows one reply, and a line break after it."""
    return _Stream(show, speaker, prompt)


class _Stream(TextStreamer):
    """Text as `TextStreamer` cuts it into words, without the token that ends the reply."""

    def __init__(self, show: Show, speaker: Speaker, prompt: Sequence[int]) -> None:
        super().__init__(speaker.tokenizer, skip_prompt=True, skip_special_tokens=False)
        self._stop_ids, self._stop_texts = speaker.ending.stops.ids, speaker.ending.stops.texts
        self._held = ""  # the end of the text so far, where a stop text may have begun
        self._show = show
        self._parts: _Parts | None = None
        self._form = speaker.form
        self._text = opened_by(prompt, speaker.tokenizer)  # all so far
        self._num_shown = 0
        if speaker.response_template is None:
            self._show_written(is_whole=False)
        else:
            self._parts = _Parts(show, speaker, prompt)

    def put(self, value: Tensor) -> None:
        """Takes the prompt, then one token at a time."""
        if self.next_tokens_are_prompt or int(value) not in self._stop_ids:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Shows the next words, up to a stop text."""
        text = self._before_stop_text(text, is_whole=stream_end)
        if self._parts is None:
            self._text += text
            self._show_written(is_whole=stream_end)
        else:
            self._parts.feed(text)
            if stream_end:
                self._parts.end()
        if stream_end:
            self._show("\n")

    def _before_stop_text(self, text: str, *, is_whole: bool) -> str:
        """What may be shown by now: all but an end that may begin a stop text, and never a stop text."""
        text = self._held + text
        end = min([at for stop in self._stop_texts if (at := text.find(stop)) >= 0], default=len(text))
        if end == len(text) and not is_whole:
            begun = (len(text) - n for stop in self._stop_texts for n in range(1, len(stop)) if text.endswith(stop[:n]))
            end = min(begun, default=end)
        self._held = text[end:]
        return text[:end]

    def _show_written(self, *, is_whole: bool) -> None:
        """Shows what is new of a text without a response template; of a thought's form once it is whole."""
        parts = self._form.parts(self._text) if self._form is not None and is_whole else None
        if parts is not None and self._num_shown == 0:
            named = {name: part for name, part in parts.items() if part}
            alone = list(named) == ["content"]
            self._show("\n".join(part if alone else f"[{name}] {part}" for name, part in named.items()))
        elif is_whole or not self._may_have_form():
            self._show(self._text[self._num_shown :])
            self._num_shown = len(self._text)

    def _may_have_form(self) -> bool:
        """Whether the text so far may be the beginning of a form's."""
        form = self._form
        begun = () if form is None else tuple(each for each in (form.before, form.alone) if each)
        return any(self._text.startswith(each) or each.startswith(self._text) for each in begun)


class _Parts:
    """The parts of a reply, as a response parser of `transformers` finds them."""

    def __init__(self, show: Show, speaker: Speaker, prompt: Sequence[int]) -> None:
        self._show = show
        self._is_empty = True
        self._named: str | None = None  # the part whose name was shown last
        self._text = opened_by(prompt, speaker.tokenizer)  # all so far
        self._parser: Any = None  # None: the template does not fit, and the text is shown as it is
        with self._or_raw():
            parser: Any = speaker.tokenizer.get_response_parser(prefix=list(prompt))
            self._events(parser.initial_events)
            self._parser = parser

    def feed(self, text: str) -> None:
        self._text += text
        if self._parser is None:
            self._show(text)
            return
        with self._or_raw():
            self._events(self._parser.feed(text))

    def end(self) -> None:
        if self._parser is not None:
            with self._or_raw():
                self._events(self._parser.finalize()[1])

    @contextmanager
    def _or_raw(self) -> Iterator[None]:
        """Shows all of the text where the template does not fit it; `Reply.problem` says why."""
        try:
            yield
        except Exception:  # templates are data, and their parsers raise anything
            self._parser = None
            self._show(self._text if self._is_empty else f"\n{self._text}")

    def _events(self, events: Iterable[dict[str, Any]]) -> None:
        for event in events:
            self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        name, is_text = event["field"], not event.get("dirty", False)
        if event["type"] == "region_open":
            self._named = None
        elif event["type"] == "region_chunk" and is_text and event["text"].strip("\n" if self._named is None else ""):
            self._name(name)
            self._show(event["text"])
        elif event["type"] == "region_close" and not isinstance(event["value"], str):
            self._name(name)
            self._show(json.dumps(event["value"], ensure_ascii=False))

    def _name(self, name: str) -> None:
        """Begins a part on a line of its own; an answer that is all there is has no name."""
        if self._named == name:
            return
        if not self._is_empty:
            self._show("\n")
        if name != "content" or not self._is_empty:
            self._show(f"[{name}] ")
        self._is_empty, self._named = False, name
