r"""A chat template -> the text of each assistant turn: the prompt as generation sees it, then the answer.

    prompt  <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n
    answer  4<|im_end|>

The prompt is always the template's own, ready for an answer. The answer is what the template writes of the message
after that; where it writes the past differently once there is an answer, what it writes after the same header. An
answer ends with its end-of-turn token, or with the next turn's mark where a template has no other end (GLM-4). `shown`
finds what a template would leave out. `encode` makes ids of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from llmtrain.data.chat.opening import (
    EMPTY_THOUGHT,
    after_opening,
    closes,
    ends_empty_thought,
    has_thought,
    num_equal,
    opening_of,
)
from llmtrain.data.chat.shown import MessageShape, Probe, Shape, message_shape, probe_of, shape_of
from llmtrain.data.chat.trial import CALLING, RESULT_OF_CALL, WRITTEN, Trial
from llmtrain.data.chat.turn import Turn
from llmtrain.data.formats.messages import Conversation, Message
from llmtrain.data.rendering import ANSWER, FAULTS, PROBE, QUESTION, Renderer, Spans, not_jinja
from llmtrain.system.files import one_line

FIX = "set data.chat_template=ours or a Jinja file"
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
DEVELOPER_AS_SYSTEM = "a message of the role developer, which the chat template does not know, is a system message"
OPENING_ANSWER = "its first message is an answer, which no prompt comes before: given, not trained"


class BadExample(ValueError):
    """An example that cannot be trained as it is; `reason` is the ledger's key, the text one line with the place."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Stop:
    """What ends an answer in a text."""

    token: str  # what is written after the answer's own text, mostly one token
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.token)


class ChatTemplate:
    """A template that was tried on a few messages, and found fit for training.

    `variables` are what it may write besides messages (bos_token, ...), `added_tokens` the texts of all tokens that
    are never part of another one; `has_tools`: it is for chats with tools, and tried with one. Raises ValueError, one
    line, for a template with a fault of syntax, and for one whose answers could not be generated as they are trained.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        added_tokens: Iterable[str],
        eos_token: str | None,
        *,
        has_tools: bool = False,
    ) -> None:
        self._renderer = Renderer(source, variables, is_for_tools=has_tools)
        self._tools = self._renderer.tried_with
        self._is_marked = MARKED.search(source) is not None
        longest_first = sorted(added_tokens, key=lambda token: (-len(token), token))
        self._added_token = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._in_content = re.compile("|".join(["</?think>", *map(re.escape, longest_first)]))
        trial = self._try()
        probed = [self._probe(messages, tools) for messages, tools in WRITTEN]
        calls, answered = (self._probe(messages, ()) for messages in (CALLING, RESULT_OF_CALL))
        self._written = self._added_tokens_of([trial.prompt, trial.answer, calls, answered, *probed])
        self._filler = re.compile(rf"(?:\s|{'|'.join(map(re.escape, self._written))})*")
        after_answer = trial.answer.rpartition(PROBE)[2]
        self._mark_after_answer = self._next_mark(trial.answer, trial.followed)
        self._mark_after_calls = ""
        if self._added_token.search(after_answer):
            self._mark_after_answer = ""
        elif calls is not None and answered is not None:
            self._mark_after_calls = self._next_mark(calls, answered)
        end_of_turn = self._end_of_turn_token(trial)
        self.stop_tokens: tuple[str, ...] = tuple(dict.fromkeys([end_of_turn, *([eos_token] if eos_token else [])]))
        """What may end an answer: the end-of-turn token, EOS, and where it differs what ends a call of tools."""
        # Only once the others are known: a call that ends with one of them needs none besides.
        self.stop_tokens += self._end_of_calls(calls, len(trial.prompt))
        self._opening = opening_of(trial.prompt, trial.answer)
        r"""What the prompt has of an answer that the template does not write again; mostly nothing.

        DeepSeek-R1's prompt ends with `<|Assistant|><think>\n`; the same turn with its answer is `<|Assistant|>4`. The
        opening is `<think>\n`, as it is of Nemotron 3, whose turn is `<think></think>4` then.
        """
        self._require_generated(trial)
        self._left_out: dict[tuple[Shape, bool], str | None] = {}

    def text(self, conversation: Conversation) -> str:
        """The whole conversation. Raises BadExample."""
        messages = conversation.messages
        if self._opening and messages[-1]["role"] == "assistant":
            return self.turns(conversation, [len(messages) - 1])[0].text
        text, _ = self._text(conversation, len(messages), is_prompt=False)
        self._require_shown(conversation, self._shapes(conversation), as_turn=False)
        _require_tools(conversation, text)
        return text

    def turns(self, conversation: Conversation, indices: Sequence[int]) -> list[Turn]:
        """The assistant turns at these places among the messages, but for one before any other. Raises BadExample."""
        shapes, where = self._shapes(conversation), conversation.where
        following = [index for index in indices if index > 0]
        if not following:
            raise BadExample("no prompt", f"{where}: the conversation begins with an answer, which has no prompt")
        turns = []
        for index in following:
            self._require_shown(conversation, shapes[: index + 1], as_turn=True)
            turn = self._turn(conversation, index)
            _require_tools(conversation, turn.text)
            turns.append(turn)
        notes = [OPENING_ANSWER] if len(following) < len(indices) else []
        if self._renderer.reads_developer_as_system and any(m["role"] == "developer" for m in conversation.messages):
            notes.append(DEVELOPER_AS_SYSTEM)
        turns[0] = replace(turns[0], notes=(*turns[0].notes, *notes))
        return turns

    def _turn(self, conversation: Conversation, index: int) -> Turn:
        """The assistant turn at a place among the messages. Raises BadExample."""
        message = conversation.messages[index]
        prompt, _ = self._text(conversation, index, is_prompt=True)
        text, marks = self._text(conversation, index + 1, is_prompt=False)
        has_mark = self._mark_after_calls if message.get("tool_calls") else self._mark_after_answer
        text += has_mark
        header, start = prompt, len(prompt)
        if not text.startswith(prompt):
            header = prompt.removesuffix(self._opening)
            start = len(header) if text.startswith(header) else self._after_header(conversation, index, header, text)
            if start < 0:
                raise self._not_following(conversation, index, prompt)
        stop = self._end_of_turn(text, start)
        if stop is None:
            raise BadExample(
                "untrained stop token",
                f"{conversation.where}: message {index} does not end with {' or '.join(self.stop_tokens)} in the "
                f"chat template, so its end would not be trained; {FIX}",
            )
        joint = self._joint(prompt)
        if header == prompt:
            shift = len(prompt) - start
            trained = tuple((first + shift, last + shift) for first, last in _trained(marks, start, stop.end))
            return Turn(prompt + text[start : stop.end], len(prompt), trained, index, joint)
        rest = after_opening(message, self._opening, text[start : stop.start])
        if rest is None:
            raise self._not_following(conversation, index, prompt)
        answer, is_assumed = rest
        whole = prompt + answer + stop.token
        notes = (EMPTY_THOUGHT,) if is_assumed else ()
        return Turn(whole, len(prompt), ((len(prompt), len(whole)),), index, joint, notes)

    def _after_header(self, conversation: Conversation, index: int, header: str, text: str) -> int:
        r"""Where the answer begins in a text whose past differs from that of its prompt; -1: no such place.

            prompt  [INST] Be brief.\n\nHi[/INST]
            text    [INST] Hi[/INST] Hello</s>

        The header `[/INST]` is the last one before the text differs from that of another answer.
        """
        tail = header[self._joint(header) :]
        other = probe_of(shape_of([message_shape(conversation.messages[index], self._in_content)], False), "qz")
        try:
            messages = (*conversation.messages[:index], *other.messages)
            another, _ = self._renderer.text(messages, conversation.tools, is_prompt=False)
        except FAULTS:
            return -1
        at = text.rfind(tail, 0, num_equal(text, another)) if tail else -1
        between = text[at + len(tail) : num_equal(text, another)]
        return -1 if at < 0 or any(stop in between for stop in self.stop_tokens) else at + len(tail)

    def _not_following(self, conversation: Conversation, index: int, prompt: str) -> BadExample:
        opening = self._opening.strip()
        if ends_empty_thought(prompt) and has_thought(conversation.messages[index]):
            asked = self._renderer.arguments_like("think", "reason")
            how = f", or let the prompt leave it open by data.template_kwargs ({', '.join(asked)})" if asked else ""
            return BadExample(
                "thought after an ended one",
                f"{conversation.where}: message {index} has a thought, and the chat template's prompt for it has ended "
                f"an empty one already: take the thought out{how}, or {FIX}",
            )
        fix = f"begin its content with {opening}, or {FIX}" if opening else f"give it reasoning_content, or {FIX}"
        return BadExample(
            "answer does not follow its prompt",
            f"{conversation.where}: the chat template's prompt for message {index} ends with "
            f"{self._opening if opening else prompt[-40:]!r}, from where the message does not go on; {fix}",
        )

    def _joint(self, prompt: str) -> int:
        r"""The first character of a prompt whose ids could depend on what follows: that of its last added token.

        In `<|im_start|>assistant\n` the ids of `assistant\n` could, since a break may join the answer's first.
        """
        return max(0, *(prompt.rfind(token) for token in self._written))

    def _text(self, conversation: Conversation, num_messages: int, *, is_prompt: bool) -> tuple[str, Spans]:
        """The first messages as the template writes them; raises BadExample where it does not."""
        messages, is_marked = conversation.messages[:num_messages], self._is_marked and not is_prompt
        try:
            return self._renderer.text(messages, conversation.tools, is_prompt=is_prompt, is_marked=is_marked)
        except FAULTS as error:
            raise BadExample(
                "template refuses the row",
                f"{conversation.where}: the chat template refuses the row: {one_line(error)}",
            ) from None

    def _end_of_turn(self, text: str, start: int) -> Stop | None:
        """The stop token that ends `text[start:]`: after it is nothing but white space and the template's tokens."""
        for token in self.stop_tokens:
            at = text.find(token, start)
            while at >= 0:
                if self._filler.fullmatch(text, at + len(token)):
                    return Stop(token, at)
                at = text.find(token, at + 1)
        return None

    def _try(self) -> Trial:
        """A plain chat as the template writes it; raises ValueError where it does not."""
        try:
            prompt = self._plain([QUESTION], is_prompt=True)
            question, answer, followed = map(
                self._plain, ([QUESTION], [QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION])
            )
        except TemplateSyntaxError as error:
            raise not_jinja(error) from None
        except FAULTS as error:
            raise ValueError(f"the chat template refuses a plain chat: {one_line(error)}; {FIX}") from None
        if PROBE not in answer:
            raise ValueError(f"the chat template leaves out the assistant's text; {FIX}")
        return Trial(prompt, question, answer, followed)

    def _plain(self, messages: Sequence[Message], is_prompt: bool = False) -> str:
        return self._renderer.text(messages, self._tools, is_prompt=is_prompt)[0]

    def _next_mark(self, text: str, followed: str) -> str:
        r"""What a template writes after a text once a turn follows, up to its first token: `<|user|>` in GLM-4."""
        if not followed.startswith(text):
            return ""
        found = self._added_token.search(followed, len(text))
        is_first = found is not None and not followed[len(text) : found.start()].strip()
        return followed[len(text) : found.end()] if found is not None and is_first else ""

    def _end_of_turn_token(self, trial: Trial) -> str:
        r"""The token that ends an answer: the last one after it that is there also where a question follows.

            answer    4<|im_end|><|eos|>
            followed  4<|im_end|>\n<|im_start|>user\n...

        gives `<|im_end|>`. Where an answer ends differently once it is followed, the first token after it; where there
        is none, the mark of the turn that follows. Raises ValueError where that has none either.
        """
        after_answer, followed = (text.rpartition(PROBE)[2] for text in (trial.answer, trial.followed))
        tokens = [(found.group(), found.end()) for found in self._added_token.finditer(after_answer)]
        if not tokens and self._mark_after_answer:
            return self._mark_after_answer.lstrip()
        if not tokens:
            raise ValueError(
                f"the chat template writes no token of the tokenizer after an answer, only {after_answer!r}, so that "
                f"generation would not know where to stop; {FIX}"
            )
        lasting = [token for token, end in tokens if followed.startswith(after_answer[:end])]
        return lasting[-1] if lasting else tokens[0][0]

    def _added_tokens_of(self, texts: Iterable[str | None]) -> tuple[str, ...]:
        """The added tokens that the template writes, in the order of their first use."""
        written = (text for text in texts if text is not None)
        return tuple(dict.fromkeys(token for text in written for token in self._added_token.findall(text)))

    def _probe(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str | None:
        """The text of these messages; None if the template refuses them, as it will refuse rows like them."""
        try:
            return self._renderer.text(messages, tools or self._tools, is_prompt=False)[0]
        except FAULTS:
            return None

    def _end_of_calls(self, text: str | None, start: int) -> tuple[str, ...]:
        """The token that ends an answer of calls, where it is not one of the stop tokens."""
        if self._mark_after_calls:
            return (self._mark_after_calls.lstrip(),)
        if text is None or self._end_of_turn(text, start) is not None:
            return ()
        found = list(self._added_token.finditer(text, start))
        return (found[-1].group(),) if found and not text[found[-1].end() :].strip() else ()

    def _require_generated(self, trial: Trial) -> None:
        """Raises ValueError if generation would begin an answer at another place than the template writes it."""
        before_answer = trial.answer.rpartition(PROBE)[0][len(trial.prompt) :]
        if self._opening and not closes(self._opening):
            self._require_opened(trial.prompt)
        elif not self._opening and trial.prompt == trial.question and before_answer.strip():
            raise ValueError(
                f"the chat template ignores add_generation_prompt, so that a model would have to write "
                f"{before_answer!r} before each answer; {FIX}"
            )

    def _require_opened(self, prompt: str) -> None:
        """Raises ValueError if no answer, not even one that begins with a thought, would follow the prompt."""
        answers: tuple[Message, ...] = (
            {**ANSWER, "content": self._opening + PROBE},
            {**ANSWER, "content": f"<think>\n{PROBE}\n</think>\n\n{PROBE}"},
            {**ANSWER, "reasoning_content": PROBE},
        )
        texts = [self._probe([QUESTION, answer], ()) for answer in answers]
        if not any(text is not None and text.startswith(prompt) for text in texts):
            raise ValueError(
                f"the chat template asks for an answer with {self._opening!r}, which no answer begins with once it is "
                f"written, so that training would differ from generation; {FIX} in which it does"
            )

    def _shapes(self, conversation: Conversation) -> list[MessageShape]:
        return [message_shape(message, self._in_content) for message in conversation.messages]

    def _require_shown(self, conversation: Conversation, shapes: Sequence[MessageShape], *, as_turn: bool) -> None:
        """Raises BadExample where the template leaves out something of a conversation of these messages.

        `as_turn`: the last one is an answer after its prompt, not one message of the whole. A shape that the template
        refuses is left to the row itself, whose words may be others.
        """
        tried = shape_of(shapes, bool(conversation.tools)), as_turn
        if tried not in self._left_out:
            self._left_out[tried] = self._left_out_of(*tried)
        fault = self._left_out[tried]
        if fault is not None:
            raise _left_out(fault, conversation)

    def _left_out_of(self, shape: Shape, as_turn: bool) -> str | None:
        """What the template leaves out of conversations of a shape, or of their last turn, in words; or None."""
        probe = probe_of(shape)
        turn = self._probed_turn(probe) if as_turn else None
        text = turn.text if turn is not None else self._probe(probe.messages, probe.tools)
        missing = None if text is None else probe.missing(text)
        if missing is None and turn is not None:  # a system prompt that is written with the answer would be trained
            missing = probe.missing_before_answer(turn.text[: turn.start])
            return None if missing is None else f"{missing.part} from the prompt"
        return None if missing is None else missing.part

    def _probed_turn(self, probe: Probe) -> Turn | None:
        """The last turn of these messages; None if there is none."""
        try:
            return self._turn(Conversation(probe.messages, 0, probe.tools, "", 0), len(probe.messages) - 1)
        except BadExample:
            return None


def _left_out(part: str, conversation: Conversation) -> BadExample:
    return BadExample(
        f"template leaves out {part}",
        f"{conversation.where}: the chat template leaves out {part}; take them out of the row, or set "
        "data.chat_template to a Jinja file that writes them",
    )


def _require_tools(conversation: Conversation, text: str) -> None:
    """Raises BadExample where the name of a tool is not in the text."""
    for tool in conversation.tools:
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name not in text:
            raise _left_out("tools", conversation)


def _trained(marks: Spans, start: int, end: int) -> Spans:
    """The marked spans within an answer [start, end), made to reach its end; all of it where none is marked."""
    within = [(max(first, start), min(last, end)) for first, last in marks if last > start and first < end]
    if not within:
        return ((start, end),)
    return (*within[:-1], (within[-1][0], end))
