r"""Conversations -> token ids, and which of them are trained.

The ids of a prompt are those that generation will see: what the chat template and the tokenizer give for the
messages before an answer. A row is one document, unless its turns cannot share one: where the template writes
earlier turns differently once there are later ones, or where a token of the whole text would lie across the start
of an answer, such turns become separate documents, each after its own prompt.

    <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n    given
    4<|im_end|>                                                   trained
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmtrain.config.sections import SpecialTokens
from llmtrain.data.chat.default_template import chat_template
from llmtrain.data.chat.template import FIX, BadExample, ChatTemplate, Turn
from llmtrain.data.formats.instructions import Example, PlainText
from llmtrain.data.formats.messages import Conversation
from llmtrain.data.tokenize import TextEncoder
from llmtrain.protocols import Array
from llmtrain.system.files import one_line

__all__ = ["BadExample", "ChatEncoder", "Encoded", "LossOn", "choose_template"]

Ids = tuple[int, ...]
LossOn = Literal["assistant", "last", "completion", "all"]


@dataclass(frozen=True)
class Encoded:
    """One document."""

    input_ids: Array  # (tokens,) unsigned, of ChatEncoder.dtype
    trained: Array  # (tokens,) bool: this token is a target of the loss; never the first, which nothing predicts


@dataclass
class _Draft:
    """A text that becomes one document, and one more for each turn that cannot share it."""

    where: str
    text: str
    turns: list[Turn] = field(default_factory=list)  # what is trained; []: everything
    before: Ids = ()  # put around the text, unless it has them
    after: Ids = ()
    separate: list[Turn] = field(default_factory=list)  # turns whose prompt has other ids in this text than alone


class _Tokens(NamedTuple):
    """A text's ids, and the characters [start, end) of each."""

    ids: list[int]
    places: list[tuple[int, int]]


Tokenized = Mapping[str, _Tokens]


class ChatEncoder:
    """Turns examples into documents, many at a time, on all cores.

    `plain` is data.chat_template=none: the tokenizer's own chat template is not used. Raises ValueError, one line,
    for a tokenizer without a template, a template with a fault of syntax, and one whose answers could not be
    generated as they are trained; with `plain`, for a tokenizer without EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, plain: bool, loss_on: LossOn) -> None:
        around = self._around = TextEncoder(tokenizer)
        self.dtype, self.unknown_id = around.dtype, around.unknown_id
        self._prefix, self._suffix = around.prefix, around.suffix
        self._loss_on = loss_on
        self._bos_id, self._eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._backend = around.backend
        self._backend.encode_special_tokens = False  # a template's tokens are part of its text
        self._backend.post_processor = None  # some trim white space off the places of tokens
        self._template = None if plain else _template(tokenizer)
        if self._template is None and self._eos_id is None:
            raise ValueError("data.chat_template=none ends a completion with EOS, which the tokenizer lacks; " + FIX)
        stops = (tokenizer.eos_token,) if self._template is None else self._template.stop_tokens
        self._stop = stops[0]
        self.end_of_turn_ids: Ids = tuple(tokenizer.added_tokens_encoder[stop] for stop in stops)
        """What a trained answer ends with, so that generation must stop on it: end of turn first, then EOS."""
        template = None if plain else tokenizer.chat_template
        what = (tokenizer.special_tokens_map, template, loss_on, around.prefix, around.suffix)
        self.fingerprint = blake2b(f"{what}{self._backend.to_str()}".encode(), digest_size=16).hexdigest()
        """32 hexadecimal digits, different wherever examples would become different documents."""

    def encode(self, examples: Sequence[Example]) -> list[list[Encoded] | BadExample]:
        """The documents of each example, or why it has none.

        Raises ValueError for text that the tokenizer fails on.
        """
        # 1. Text: what the template writes, and where in it the answers are, in characters.
        planned = [self._planned(example) for example in examples]
        drafts = [draft for plan in planned if not isinstance(plan, BadExample) for draft in plan]
        # 2. Ids of all texts in one call, which uses all cores, and of the ends of prompts alone to compare with.
        whole = self._tokens(text for draft in drafts for text in (draft.text, *map(self._joint, draft.turns)))
        for draft in drafts:
            draft.separate = [
                turn for turn in draft.turns if not self._keeps_prompt_ids(turn, whole[draft.text], whole)
            ]
        # 3. Ids of prompt and answer separately, of the few turns whose prompt came out with other ids.
        halves = self._tokens(text for draft in drafts for turn in draft.separate for text in self._halves(turn))
        # 4. Documents: ids, and characters that are trained turned into a mask over ids.
        return [plan if isinstance(plan, BadExample) else self._documents(plan, whole, halves) for plan in planned]

    def _planned(self, example: Example) -> list[_Draft] | BadExample:
        try:
            if isinstance(example, PlainText):
                return [_Draft(example.where, example.text, before=self._prefix, after=self._suffix)]
            if self._template is None:
                return [self._completion(example)]
            if self._loss_on == "all":
                return [_Draft(example.where, self._template.text(example))]
            return _shared(self._template.turns(example, self._answers(example)), example.where)
        except BadExample as fault:
            return fault

    def _answers(self, conversation: Conversation) -> list[int]:
        """The places of the answers that are trained. Raises BadExample where there is none."""
        where = conversation.where
        answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if self._loss_on == "completion":
            if not conversation.num_prompt:
                raise BadExample(
                    "no completion", f"{where}: the row marks no completion; set data.loss_on=assistant or last"
                )
            answers = [i for i in answers if i >= conversation.num_prompt]
        elif self._loss_on == "last":
            answers = answers[-1:]
        if not answers:
            raise BadExample("no trained token", f"{where}: no answer to train, with data.loss_on={self._loss_on}")
        return answers

    def _completion(self, conversation: Conversation) -> _Draft:
        """A prompt and its completion, unchanged. Raises BadExample for any other conversation."""
        texts = [message.get("content") for message in conversation.messages]
        roles = [message["role"] for message in conversation.messages]
        has_calls = bool(conversation.tools) or any(message.get("tool_calls") for message in conversation.messages)
        match roles, texts:
            case ["user", "assistant"], [str(prompt), str(completion)] if (
                conversation.num_prompt == 1 and not has_calls
            ):
                text = prompt + completion
                turn = Turn(text, len(prompt), ((len(prompt), len(text)),))
                turns = [] if self._loss_on == "all" else [turn]
                return _Draft(conversation.where, text, turns, before=self._prefix, after=self._suffix)
        raise BadExample(
            "conversation without template",
            f"{conversation.where}: a conversation needs a chat template; set data.chat_template=auto, ours or a "
            "Jinja file",
        )

    def _joint(self, turn: Turn) -> str:
        r"""The end of a turn's prompt, from where its ids could depend on the answer: `<|im_start|>assistant\n`."""
        prompt = turn.text[: turn.start]
        return prompt if self._template is None else prompt[self._template.anchor(prompt) :]

    def _keeps_prompt_ids(self, turn: Turn, tokens: _Tokens, joints: Tokenized) -> bool:
        """Whether the prompt of a turn has, within a whole text, the ids that it has alone."""
        joint = joints[self._joint(turn)].ids
        end = bisect_left(tokens.places, (turn.start,))
        return len(joint) <= end and tokens.ids[end - len(joint) : end] == joint

    def _halves(self, turn: Turn) -> tuple[str, str]:
        r"""Prompt and answer, to be tokenized separately; the answer after a token, so that it does not start a text.

        Of an answer that begins with a break, which would join the prompt's last one into one token:
        `<|im_start|>assistant\n` and `<|im_end|>\nHello<|im_end|>`.
        """
        return turn.text[: turn.start], self._stop + turn.text[turn.start :]

    def _documents(self, drafts: Sequence[_Draft], whole: Tokenized, halves: Tokenized) -> list[Encoded] | BadExample:
        documents = []
        try:
            for draft in drafts:
                if len(draft.separate) < len(draft.turns) or not draft.turns:
                    documents.append(self._together(draft, whole[draft.text]))
                documents += [
                    self._separate(draft, turn, *(halves[half] for half in self._halves(turn)))
                    for turn in draft.separate
                ]
        except BadExample as fault:
            return fault
        return documents

    def _together(self, draft: _Draft, tokens: _Tokens) -> Encoded:
        """A draft's text up to the end of the last turn that is trained in it."""
        places = tokens.places
        turns = [turn for turn in draft.turns if turn not in draft.separate]
        if not turns:
            trained = np.ones(len(places), dtype=bool)
        else:
            trained = np.zeros(bisect_left(places, (len(turns[-1].text),)), dtype=bool)
            for turn in turns:
                _mark_trained(trained, places, turn.trained)
        return self._encoded(draft, tokens.ids[: len(trained)], trained)

    def _separate(self, draft: _Draft, turn: Turn, prompt: _Tokens, answer: _Tokens) -> Encoded:
        """A turn after its prompt, each with the ids that it has alone."""
        shift = turn.start - len(self._stop)
        trained = np.zeros(len(answer.ids), dtype=bool)
        _mark_trained(trained, answer.places, [(start - shift, end - shift) for start, end in turn.trained])
        first = bisect_left(answer.places, (len(self._stop),))
        mask = np.concatenate([np.zeros(len(prompt.ids), dtype=bool), trained[first:]])
        return self._encoded(draft, [*prompt.ids, *answer.ids[first:]], mask)

    def _encoded(self, draft: _Draft, ids: Sequence[int], trained: Array) -> Encoded:
        """A document of these ids, with BOS and EOS where the draft wants them. Raises BadExample."""
        before = draft.before if tuple(ids[: len(draft.before)]) != draft.before else ()
        after = draft.after if tuple(ids[-len(draft.after) :]) != draft.after else ()
        input_ids = np.array([*before, *ids, *after], dtype=self.dtype)
        mask = np.concatenate([np.zeros(len(before), dtype=bool), trained, np.ones(len(after), dtype=bool)])
        mask[:1] = False
        if self._bos_id is not None and input_ids[:2].tolist() == [self._bos_id] * 2:
            raise BadExample(
                "doubled BOS",
                f"{draft.where}: the text begins with BOS twice; take one out of the row or the chat template",
            )
        if not mask.any():
            raise BadExample("no trained token", f"{draft.where}: no token of the row would be trained")
        if draft.turns and int(input_ids[np.flatnonzero(mask)[-1]]) not in self.end_of_turn_ids:
            raise BadExample("untrained stop token", f"{draft.where}: the end of the last answer would not be trained")
        return Encoded(input_ids, mask)

    def _tokens(self, texts: Iterable[str]) -> dict[str, _Tokens]:
        """Each text with its ids and their places, nothing put around them."""
        distinct = list(dict.fromkeys(texts))
        self._around.require_known(distinct)
        try:
            encodings = self._backend.encode_batch(distinct, add_special_tokens=False)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"the tokenizer cannot encode these rows: {one_line(error)}") from None
        return {
            text: _Tokens(encoding.ids, encoding.offsets) for text, encoding in zip(distinct, encodings, strict=True)
        }


def choose_template(tokenizer: PreTrainedTokenizerFast, asked: str) -> tuple[str | None, list[str]]:
    """The template that data.chat_template asks for, and the special tokens it needs that the tokenizer lacks.

    None: prompt and completion unchanged. Raises ValueError for a file that cannot be read, and for a tokenizer
    with several templates none of which is the default.
    """
    if asked == "none":
        return None, []
    if asked == "auto" and tokenizer.chat_template is not None:
        try:
            return str(tokenizer.get_chat_template()), []
        except ValueError:
            raise ValueError(
                "data.chat_template=auto: the tokenizer has several chat templates and no default; "
                "set data.chat_template=ours or a Jinja file"
            ) from None
    if asked in ("auto", "ours"):
        tokens = SpecialTokens()
        needed = (tokens.start_of_turn, tokens.end_of_turn)
        return chat_template(tokens), [token for token in needed if not _is_token(tokenizer, token)]
    try:
        return Path(asked).expanduser().read_text(encoding="utf-8"), []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.chat_template={asked} cannot be read ({error}); give auto, ours, none or a Jinja file"
        ) from None


def _is_token(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) == 1


def _template(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The tokenizer's template, tried. Raises ValueError if it has none, or one that cannot be used."""
    source = tokenizer.chat_template
    if not isinstance(source, str):
        raise ValueError(
            f"the tokenizer has no chat template; {FIX}, or to none for prompts and completions as they are"
        )
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.single_word]
    return ChatTemplate(source, tokenizer.special_tokens_map, added, tokenizer.eos_token)


def _shared(turns: Iterable[Turn], where: str) -> list[_Draft]:
    r"""Turns in as few texts as hold each of them unchanged, in order.

    The text of one turn mostly begins the text of the next, and then both share the longer. A template that takes the
    thoughts off earlier turns needs two texts, for the second does not begin with the first:

        <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\nEasy.\n</think>\n\n4<|im_end|>
        <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n3 + 3? ...
    """
    drafts: list[_Draft] = []
    for turn in turns:
        if drafts and turn.text.startswith(drafts[-1].text):
            drafts[-1].text = turn.text
            drafts[-1].turns.append(turn)
        else:
            drafts.append(_Draft(where, turn.text, [turn]))
    return drafts


def _mark_trained(trained: Array, places: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> None:
    """Mark the tokens that begin within spans of characters.

    Tokens at [(0, 4), (4, 5), (5, 15)] and the span (4, 15): the second and the third.
    """
    for start, end in spans:
        trained[bisect_left(places, (start,)) : bisect_left(places, (end,))] = True
