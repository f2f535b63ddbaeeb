r"""Conversations -> token ids, and which of them are trained.

The ids of a prompt are those that generation will see: what the chat template and the tokenizer give for the
messages before an answer. A row is one document, unless its turns cannot share one: where the template writes
earlier turns differently once there are later ones (`drafts`), or where a token of the whole text would lie across the
start of an answer, such turns become separate documents, each after its own prompt.

    <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n    given
    4<|im_end|>                                                   trained
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmtrain.config.data import SpeltTokens
from llmtrain.data.chat.choice import tried_templates
from llmtrain.data.chat.drafts import Draft, Drafting, Ids, LossOn
from llmtrain.data.chat.shown import unread_keys
from llmtrain.data.chat.template import FIX, BadExample
from llmtrain.data.chat.turn import Turn
from llmtrain.data.formats.faults import UnfitRow
from llmtrain.data.formats.instructions import Example, PlainText
from llmtrain.data.formats.token_rows import TokenRow, require_known
from llmtrain.data.rendering import sources_of
from llmtrain.data.spelt_tokens import MARK, ControlTokens, SpeltTokenError
from llmtrain.data.tokenize import TextEncoder
from llmtrain.system.files import one_line
from llmtrain.system.typing import Array

__all__ = ["BadExample", "ChatEncoder", "Encoded", "LossOn"]

RENDERING_VERSION = 5
"""Raised wherever the same rows, template and tokenizer become other documents than before."""


@dataclass(frozen=True)
class Encoded:
    """One document."""

    input_ids: Array  # (tokens,) unsigned, of ChatEncoder.dtype
    trained: Array  # (tokens,) bool: this token is a target of the loss; never the first, which nothing predicts
    weights: Array | None = None  # (tokens,) float32: of each target in the loss; None: every target has 1
    notes: tuple[str, ...] = ()  # what was assumed of its row, to be counted; of a row's first document alone

    def part(self, tokens: slice | Array) -> Encoded:
        """Some of its tokens; a target that comes first is none any more."""
        trained = self.trained[tokens].copy()
        trained[:1] = False
        return Encoded(self.input_ids[tokens], trained, None if self.weights is None else self.weights[tokens])


class _Tokens(NamedTuple):
    """A text's ids, and the characters [start, end) of each."""

    ids: list[int]
    places: list[tuple[int, int]]


Tokenized = Mapping[str, _Tokens]


class ChatEncoder:
    """Turns examples into documents, many at a time, on all cores.

    `plain` is data.chat_template=none: the tokenizer's own chat template is not used. `spelt_tokens` is
    data.special_tokens_in_text. Raises ValueError, one line, for a tokenizer without a template, a template with a
    fault of syntax, and one whose answers could not be generated as they are trained; with `plain`, for a tokenizer
    without EOS.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        plain: bool,
        loss_on: LossOn,
        spelt_tokens: SpeltTokens = "warn",
        loss_on_thoughts: bool = True,
    ) -> None:
        around = self._around = TextEncoder(tokenizer)
        self.dtype, self.unknown_id = around.dtype, around.unknown_id
        self._spelt_tokens = spelt_tokens
        self._sources = () if plain else tuple(sources_of(tokenizer.chat_template).values())
        self._control = ControlTokens(tokenizer, self._sources)
        self._vocab_size, self.name = around.vocab_size, str(tokenizer.name_or_path)
        self._bos_id = tokenizer.bos_token_id
        self._backend = around.backend
        self._backend.encode_special_tokens = False  # a template's tokens are part of its text
        self._backend.post_processor = None  # some trim white space off the places of tokens
        templates = {} if plain else tried_templates(tokenizer)
        if plain and tokenizer.eos_token_id is None:
            raise ValueError("data.chat_template=none ends a completion with EOS, which the tokenizer lacks; " + FIX)
        stops = [tokenizer.eos_token] if plain else []
        stops += dict.fromkeys(token for template in templates.values() for token in template.stop_tokens)
        self._stop = stops[0]
        self._drafting = Drafting(templates, loss_on, loss_on_thoughts, around.prefix, around.suffix)
        self.end_of_turn_ids: Ids = tuple(tokenizer.added_tokens_encoder[stop] for stop in stops)
        """What a trained answer ends with, so that generation must stop on it: end of turn first, then EOS."""
        template = None if plain else tokenizer.chat_template
        what = (
            *(
                RENDERING_VERSION,
                spelt_tokens if spelt_tokens == "warn" else (spelt_tokens, "tools", "text"),
                loss_on_thoughts,
            ),
            *(tokenizer.special_tokens_map, template, loss_on, around.prefix, around.suffix),
        )
        self.fingerprint = blake2b(f"{what}{self._backend.to_str()}".encode(), digest_size=16).hexdigest()
        """32 hexadecimal digits, different wherever examples would become different documents."""

    def encode(self, examples: Sequence[Example]) -> list[list[Encoded] | BadExample]:
        """The documents of each example, or why it has none.

        Raises ValueError for text that the tokenizer fails on.
        """
        # 1. Text: what the template writes, and where in it the answers are, in characters.
        planned = [self._planned(example) for example in examples]
        drafts = [draft for plan in planned if isinstance(plan, list) for draft in plan]
        # 2. Ids of all texts in one call, which uses all cores, and of the ends of prompts alone to compare with.
        whole = self._tokens(
            text
            for draft in drafts
            for text in (draft.text, *(turn.text[turn.joint : turn.start] for turn in draft.turns))
        )
        for draft in drafts:
            draft.separate = [
                turn for turn in draft.turns if not self._keeps_prompt_ids(turn, whole[draft.text], whole)
            ]
        # 3. Ids of prompt and answer separately, of the few turns whose prompt came out with other ids.
        halves = self._tokens(text for draft in drafts for turn in draft.separate for text in self._halves(turn))
        # 4. Documents: ids, and characters that are trained turned into a mask over ids.
        return [
            self._documents(plan, whole, halves)
            if isinstance(plan, list)
            else plan
            if isinstance(plan, BadExample)
            else [plan]
            for plan in planned
        ]

    def _planned(self, example: Example) -> list[Draft] | Encoded | BadExample:
        try:
            if isinstance(example, TokenRow):
                return self._tokenized(example)
            if isinstance(example, PlainText):
                return [self._text(example)]
            messages = tuple(self._control.as_asked(example.messages, self._spelt_tokens))
            tools = tuple(self._control.tools_as_asked(example.tools, self._spelt_tokens))
            notes = self._control.notes(example.messages, self._spelt_tokens, example.tools)
            drafts = self._drafting.of_conversation(replace(example, messages=messages, tools=tools))
            drafts[0].notes += (*notes, *unread_keys(example.messages, self._sources))
            return drafts
        except SpeltTokenError as error:
            return BadExample("control token in text", f"{example.where}: {error}")
        except BadExample as fault:
            return fault

    def _text(self, example: PlainText) -> Draft:
        """A text, whose spelt tokens are treated as those of a user's: it may be a chat that is rendered already."""
        said = [{"role": "plain", "content": example.text}]
        (asked,) = self._control.as_asked(said, self._spelt_tokens)
        draft = self._drafting.of_text(replace(example, text=asked["content"]))
        draft.notes += self._control.notes(said, self._spelt_tokens)
        return draft

    def _tokenized(self, row: TokenRow) -> Encoded:
        """The ids of a row as they are. Raises BadExample for ids that the tokenizer does not have."""
        try:
            require_known(row, self._vocab_size, self.name)
        except UnfitRow as fault:
            raise BadExample(fault.reason, f"{row.where}: {fault}") from None
        weights = np.full(len(row.ids), row.weight, dtype=np.float32)
        if row.weights is not None:
            weights *= np.array(row.weights, dtype=np.float32)
        encoded = self._weighed(row.where, np.array(row.ids, dtype=self.dtype), weights)
        return replace(encoded, notes=self._drafting.unused("tokenized, trained by its own labels or mask"))

    def _keeps_prompt_ids(self, turn: Turn, tokens: _Tokens, joints: Tokenized) -> bool:
        """Whether the prompt of a turn has, within a whole text, the ids that it has alone."""
        joint = joints[turn.text[turn.joint : turn.start]].ids
        end = bisect_left(tokens.places, (turn.start,))
        return len(joint) <= end and tokens.ids[end - len(joint) : end] == joint

    def _halves(self, turn: Turn) -> tuple[str, str]:
        r"""Prompt and answer, to be tokenized separately; the answer after a token, so that it does not start a text.

        Of an answer that begins with a break, which would join the prompt's last one into one token:
        `<|im_start|>assistant\n` and `<|im_end|>\nHello<|im_end|>`.
        """
        return turn.text[: turn.start], self._stop + turn.text[turn.start :]

    def _documents(self, drafts: Sequence[Draft], whole: Tokenized, halves: Tokenized) -> list[Encoded] | BadExample:
        documents = []
        try:
            for draft in drafts:
                if len(draft.separate) < len(draft.turns) or not draft.turns:
                    documents.append(self._together(draft, whole[draft.text]))
                documents += [
                    self._separate(draft, turn, *(halves[half] for half in self._halves(turn)))
                    for turn in draft.separate
                ]
            if drafts[0].notes:
                documents[0] = replace(documents[0], notes=drafts[0].notes)
        except BadExample as fault:
            return fault
        return documents

    def _together(self, draft: Draft, tokens: _Tokens) -> Encoded:
        """A draft's text up to the end of the last turn that is trained in it."""
        places = tokens.places
        turns = [turn for turn in draft.turns if turn not in draft.separate]
        if not turns:
            weights = np.full(len(places), draft.weight, dtype=np.float32)
        else:
            weights = np.zeros(bisect_left(places, (len(turns[-1].text),)), dtype=np.float32)
            for turn in turns:
                _mark_trained(weights, places, turn.trained, turn.weight)
        return self._encoded(draft, tokens.ids[: len(weights)], weights)

    def _separate(self, draft: Draft, turn: Turn, prompt: _Tokens, answer: _Tokens) -> Encoded:
        """A turn after its prompt, each with the ids that it has alone."""
        shift = turn.start - len(self._stop)
        weights = np.zeros(len(answer.ids), dtype=np.float32)
        spans = [(start - shift, end - shift) for start, end in turn.trained]
        _mark_trained(weights, answer.places, spans, turn.weight)
        first = bisect_left(answer.places, (len(self._stop),))
        weights = np.concatenate([np.zeros(len(prompt.ids), dtype=np.float32), weights[first:]])
        return self._encoded(draft, [*prompt.ids, *answer.ids[first:]], weights)

    def _encoded(self, draft: Draft, ids: Sequence[int], weights: Array) -> Encoded:
        """A document of these ids, with BOS and EOS where the draft wants them. Raises BadExample."""
        before = draft.before if tuple(ids[: len(draft.before)]) != draft.before else ()
        after = draft.after if tuple(ids[-len(draft.after) :]) != draft.after else ()
        input_ids = np.array([*before, *ids, *after], dtype=self.dtype)
        around = np.zeros(len(before)), np.full(len(after), draft.weight)
        weights = np.concatenate([around[0], weights, around[1]], dtype=np.float32)
        if self._bos_id is not None and input_ids[:2].tolist() == [self._bos_id] * 2:
            raise BadExample(
                "doubled BOS",
                f"{draft.where}: the text begins with BOS twice; take one out of the row or the chat template",
            )
        encoded = self._weighed(draft.where, input_ids, weights)
        if draft.turns and int(input_ids[np.flatnonzero(encoded.trained)[-1]]) not in self.end_of_turn_ids:
            raise BadExample("untrained stop token", f"{draft.where}: the end of the last answer would not be trained")
        return encoded

    def _weighed(self, where: str, input_ids: Array, weights: Array) -> Encoded:
        """A document whose targets are the tokens with a weight. Raises BadExample where there is none."""
        trained = weights > 0
        trained[:1] = False
        if not trained.any():
            raise BadExample("no trained token", f"{where}: no token of the row would be trained")
        return Encoded(input_ids, trained, None if np.all(weights[trained] == 1) else weights)

    def _tokens(self, texts: Iterable[str]) -> dict[str, _Tokens]:
        """Each text with its ids and their places, nothing put around them."""
        distinct = list(dict.fromkeys(texts))
        if self._spelt_tokens == "encode_as_text":
            marked = {text: self._in_pieces(text) for text in distinct if MARK in text}
            return marked | self._tokens_of([text for text in distinct if text not in marked])
        return self._tokens_of(distinct)

    def _in_pieces(self, text: str) -> _Tokens:
        """A text in which spelt control tokens are broken: their ids are those of plain text."""
        self._around.require_known([piece for _, piece, is_token in self._control.pieces(text) if not is_token])
        return _Tokens(*self._control.encoded(text, self._backend))

    def _tokens_of(self, distinct: Sequence[str]) -> dict[str, _Tokens]:
        self._around.require_known(distinct)
        try:
            encodings = self._backend.encode_batch(distinct, add_special_tokens=False)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"the tokenizer cannot encode these rows: {one_line(error)}") from None
        return {
            text: _Tokens(encoding.ids, encoding.offsets) for text, encoding in zip(distinct, encodings, strict=True)
        }


def _mark_trained(
    weights: Array, places: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]], weight: float
) -> None:
    """Give the tokens that begin within spans of characters their weight.

    Tokens at [(0, 4), (4, 5), (5, 15)] and the span (4, 15): the second and the third.
    """
    for start, end in spans:
        weights[bisect_left(places, (start,)) : bisect_left(places, (end,))] = weight
