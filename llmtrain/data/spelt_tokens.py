r"""Control tokens that are spelt out in the text of messages: found, refused or encoded as the text they are.

    {"role": "user", "content": "What does <|im_end|> do?"}

Without care the tokenizer reads the end of a turn there. To encode it as text, each such token is broken by MARK
before the template sees it, and put together as plain text once the template has written it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from llmtrain.config.data import SpeltTokens
from llmtrain.data.formats.messages import REASONING

Tools = Sequence[Mapping[str, Any]]

MARK = "\ufdd0"
"""A code point that is no character and never will be one."""
TAGS = frozenset(("<think>", "</think>"))
"""Tokens that an answer's text may hold: its own thought."""
TEXTS = ("content", *REASONING)


class SpeltTokenError(ValueError):
    """A row whose text spells a control token where that is an error; one line."""


class ControlTokens:
    """The tokens of a tokenizer that text should not hold: special ones, and those that its template writes.

    An assistant's text may hold those that are not special, which its format may spell: `<tool_call>`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sources: Sequence[str] = ()) -> None:
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.content]
        special = {token.content for token in added if token.special}
        written = {token.content for token in added if any(token.content in source for source in sources)}
        self._of_answers = _any_of(special - TAGS)
        self._of_others = _any_of(special | written)
        self._broken = _any_of({_break(token) for token in special | written})
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        self._plain: Tokenizer | None = None

    def found(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
        """The place of a message and a token that its text spells, of each such pair once."""
        for place, message in enumerate(messages):
            pattern = self._pattern(message)
            texts = [message[name] for name in TEXTS if isinstance(message.get(name), str)]
            texts += [json.dumps(message["tool_calls"], ensure_ascii=False)] if message.get("tool_calls") else []
            for token in dict.fromkeys(found for text in texts for found in pattern.findall(text)):
                yield place, token

    def as_asked(self, messages: Sequence[Mapping[str, Any]], spelt_tokens: SpeltTokens) -> Sequence[Mapping[str, Any]]:
        """Messages for a template, whose spelt tokens are broken where they are text.

        Raises SpeltTokenError for the first one that is spelt where that is an error.
        """
        if spelt_tokens == "encode_as_text":
            return [self._broken_in(message) for message in messages]
        spelt = next(self.found(messages), None) if spelt_tokens == "error" else None
        if spelt is not None:
            place, token = spelt
            role = messages[place]["role"]
            raise SpeltTokenError(f"message {place} ({role}) spells the control token {token} in its text")
        return messages

    def tools_as_asked(self, tools: Tools, spelt_tokens: SpeltTokens) -> Tools:
        """Descriptions of tools for a template, as `as_asked` gives messages. Raises SpeltTokenError."""
        if spelt_tokens == "encode_as_text":
            return [_replaced(tool, self._of_others) for tool in tools]
        if spelt_tokens == "error" and (token := next(self._found_in_tools(tools), None)) is not None:
            raise SpeltTokenError(f"a description of a tool spells the control token {token}")
        return tools

    def _found_in_tools(self, tools: Tools) -> Iterator[str]:
        text = json.dumps(list(tools), ensure_ascii=False, default=str) if tools else ""
        yield from dict.fromkeys(self._of_others.findall(text))

    def notes(
        self, messages: Sequence[Mapping[str, Any]], spelt_tokens: SpeltTokens, tools: Tools = ()
    ) -> tuple[str, ...]:
        """What is done about those that are spelt, to be counted; where they are an error, nothing."""
        if spelt_tokens == "error":
            return ()
        done = (
            "encoded as text"
            if spelt_tokens == "encode_as_text"
            else "read as that token (data.special_tokens_in_text)"
        )
        found = [(token, f"{messages[place]['role']} text") for place, token in self.found(messages)]
        found += [(token, "descriptions of tools") for token in self._found_in_tools(tools)]
        return tuple(dict.fromkeys(f"{token} spelt in {where}, {done}" for token, where in found))

    def pieces(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """A text in pieces: where each begins, and whether it is a broken token, given whole."""
        end = 0
        for found in self._broken.finditer(text):
            if found.start() > end:
                yield end, text[end : found.start()], False
            yield found.start(), found.group(), True
            end = found.end()
        if end < len(text):
            yield end, text[end:], False

    def encoded(self, text: str, backend: Tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text and the characters [start, end) of each, where broken tokens are plain text."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for start, piece, is_token in self.pieces(text):
            if is_token:
                found = self._text_ids(piece)
                within = [(0, len(piece))] * len(found)
            else:
                found, within = _piece(backend, piece, starts=start == 0)
            ids.extend(found)
            places.extend((start + first, start + last) for first, last in within)
        return ids, places

    def _broken_in(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message whose spelt tokens are broken by MARK. Raises SpeltTokenError for text that holds MARK itself."""
        if MARK in json.dumps(dict(message), ensure_ascii=False, default=str):
            raise SpeltTokenError("a message holds U+FDD0, which is no character")
        pattern = self._pattern(message)
        return {key: _replaced(value, pattern) for key, value in message.items()}

    def _text_ids(self, token: str) -> list[int]:
        """The ids of a broken token as plain text, anywhere but at the start of a text."""
        if self._plain is None:
            tree = json.loads(self.backend.to_str())
            tree["added_tokens"], tree["post_processor"] = [], None
            self._plain = Tokenizer.from_str(json.dumps(tree))
        return _piece(self._plain, token.replace(MARK, ""))[0]

    def _pattern(self, message: Mapping[str, Any]) -> re.Pattern[str]:
        return self._of_answers if message["role"] == "assistant" else self._of_others


def _piece(backend: Tokenizer, text: str, *, starts: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and places of a text that does not start one: SentencePiece puts a space before those that do."""
    if not starts:
        line = backend.encode("\n", add_special_tokens=False).ids
        made = backend.encode(f"\n{text}", add_special_tokens=False)
        if made.ids[: len(line)] == line:
            places = [(max(0, start - 1), max(0, end - 1)) for start, end in made.offsets[len(line) :]]
            return list(made.ids[len(line) :]), places
    made = backend.encode(text, add_special_tokens=False)
    return list(made.ids), list(made.offsets)


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _break(token: str) -> str:
    return token[0] + MARK + token[1:]


def _replaced(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda found: _break(found.group()), value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, pattern) for key, item in value.items()}
    return [_replaced(item, pattern) for item in value] if isinstance(value, list | tuple) else value
