r"""A chat template -> the text of each assistant turn: the prompt as generation sees it, then the answer.

    prompt  <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n
    answer  4<|im_end|>

What an answer is follows from the template itself: its text for the messages before, ready for an answer, must begin
its text for these and the answer. An answer ends with its end-of-turn token; what the template writes after it is the
next turn's. `encode` makes ids of the text.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from llmtrain.data.formats.messages import Conversation, Message
from llmtrain.system.files import one_line

Spans = tuple[tuple[int, int], ...]  # [start, end) in characters

FIX = "set data.chat_template=ours or a Jinja file"

FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What the expressions of a template raise."""

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""The fields of a message that `transformers` hands to templates as its reasoning."""

RENDERING = threading.Lock()
"""The spans of `generation` blocks are kept in a template that all threads share."""

PROBE = "zqx7"
"""A text that no template contains."""
QUESTION: Message = {"role": "user", "content": "question"}
ANSWER: Message = {"role": "assistant", "content": PROBE}


class BadExample(ValueError):
    """An example that cannot be trained as it is; `reason` is the ledger's key, the text one line with the place."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Turn:
    r"""One answer after its prompt: `<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>`."""

    text: str  # prompt and answer, which ends with a stop token
    start: int  # where the answer begins, in characters: at `4`
    trained: Spans  # `4<|im_end|>`, or what of it the template marks


@dataclass(frozen=True)
class Stop:
    """A stop token in a text."""

    token: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.token)


class Trial(NamedTuple):
    r"""A template's text of a plain chat, in four states; PROBE is its answer.

    question  <|im_start|>user\nquestion<|im_end|>\n
    prompt    ... and <|im_start|>assistant\n
    answer    ... and zqx7<|im_end|>\n
    followed  ... and <|im_start|>user\nquestion<|im_end|>\n
    """

    prompt: str  # a question, ready for its answer
    question: str  # the question alone
    answer: str  # with its answer
    followed: str  # and with another question after it


class ChatTemplate:
    """A template that was tried on a few messages, and found fit for training.

    `variables` are what it may write besides messages (bos_token, ...), `added_tokens` the texts of all tokens that
    are never part of another one. Raises ValueError, one line, for a template with a fault of syntax, and for one whose
    answers could not be generated as they are trained.
    """

    def __init__(
        self, source: str, variables: Mapping[str, Any], added_tokens: Iterable[str], eos_token: str | None
    ) -> None:
        self._source, self._variables = source, dict(variables)
        self._is_marked = MARKED.search(source) is not None
        longest_first = sorted(added_tokens, key=lambda token: (-len(token), token))
        self._added_token = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        trial = self._try()
        probed = {name: self._probe(*probe) for name, probe in PROBES.items()}
        end_of_turn = self._end_of_turn_token(trial)
        self._written = self._added_tokens_of([trial.prompt, trial.answer, *probed.values()])
        self._filler = re.compile(rf"(?:\s|{'|'.join(map(re.escape, self._written))})*")
        self.stop_tokens: tuple[str, ...] = tuple(dict.fromkeys([end_of_turn, *([eos_token] if eos_token else [])]))
        """What may end an answer: the end-of-turn token, EOS, and where it differs what ends a call of tools."""
        # Only once the others are known: a call that ends with one of them needs none besides.
        self.stop_tokens += self._end_of_calls(probed["tool calls"], len(trial.prompt))
        self._left_out = {name for name, text in probed.items() if text is not None and PROBE not in text}
        self._opening = trial.prompt[_num_equal(trial.prompt, trial.answer) :]
        r"""What the prompt has of an answer that the template does not write again; mostly nothing.

        DeepSeek-R1's prompt ends with `<|Assistant|><think>\n`; the same turn with its answer is `<|Assistant|>4`. The
        opening is `<think>\n`.
        """
        self._require_generated(trial)

    def text(self, conversation: Conversation) -> str:
        """The whole conversation. Raises BadExample."""
        self._require_shown(conversation)
        messages = conversation.messages
        if self._opening and messages[-1]["role"] == "assistant":
            return self.turn(conversation, len(messages) - 1).text
        return self._text(conversation, len(messages), is_prompt=False)[0]

    def turns(self, conversation: Conversation, indices: Sequence[int]) -> list[Turn]:
        """The assistant turns at these places among the messages. Raises BadExample."""
        self._require_shown(conversation)
        return [self.turn(conversation, index) for index in indices]

    def turn(self, conversation: Conversation, index: int) -> Turn:
        """The assistant turn at a place among the messages. Raises BadExample."""
        if index == 0:
            raise BadExample(
                "no prompt", f"{conversation.where}: the conversation begins with an answer, which has no prompt"
            )
        prompt, _ = self._text(conversation, index, is_prompt=True)
        text, marks = self._text(conversation, index + 1, is_prompt=False)
        if not text.startswith(prompt):
            return self._opened_turn(conversation, index, prompt, text)
        stop = self._end_of_turn(text, len(prompt))
        if stop is None:
            raise BadExample(
                "untrained stop token",
                f"{conversation.where}: message {index + 1} does not end with {' or '.join(self.stop_tokens)} in the "
                f"chat template, so its end would not be trained; {FIX}",
            )
        return Turn(text[: stop.end], len(prompt), _trained(marks, len(prompt), stop.end))

    def _opened_turn(self, conversation: Conversation, index: int, prompt: str, text: str) -> Turn:
        r"""A turn whose prompt has the answer's opening, which the template takes off once it is past.

            content  <think>\nEasy.\n</think>\n\n4
            prompt   <|User|>2 + 2?<|Assistant|><think>\n
            text     <|User|>2 + 2?<|Assistant|>\n\n4<|end|>
            turn     the prompt, then Easy.\n</think>\n\n4<|end|>

        Raises BadExample where the message does not begin with the opening.
        """
        header = prompt.removesuffix(self._opening)
        stop = self._end_of_turn(text, len(header)) if self._opening and text.startswith(header) else None
        if stop is not None:
            rest = _after_opening(conversation.messages[index], self._opening, text[len(header) : stop.start])
            if rest is not None:
                whole = prompt + rest + stop.token
                return Turn(whole, len(prompt), ((len(prompt), len(whole)),))
        opening = self._opening.strip()
        thought = "give it reasoning_content, or " if "reasoning" not in self._left_out else ""
        fix = f"begin its content with {opening}, or {FIX}" if opening else thought + FIX
        raise BadExample(
            "answer does not follow its prompt",
            f"{conversation.where}: the chat template's prompt for message {index + 1} ends with "
            f"{self._opening if opening else prompt[-40:]!r}, from where the message does not go on; {fix}",
        )

    def anchor(self, prompt: str) -> int:
        r"""The first character of a prompt whose ids could depend on what follows: that of its last added token.

        In `<|im_start|>assistant\n` the ids of `assistant\n` could, since a break may join the answer's first.
        """
        return max(0, *(prompt.rfind(token) for token in self._written))

    def _text(self, conversation: Conversation, num_messages: int, *, is_prompt: bool) -> tuple[str, Spans]:
        """The first messages as the template writes them; raises BadExample where it does not."""
        try:
            return self._rendered(conversation.messages[:num_messages], conversation.tools, is_prompt=is_prompt)
        except FAULTS as error:
            raise BadExample(
                "template refuses the row",
                f"{conversation.where}: the chat template refuses the row: {one_line(error)}",
            ) from None

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, is_prompt: bool
    ) -> tuple[str, Spans]:
        """What `apply_chat_template` gives, and the spans of `generation` blocks."""
        is_marked = self._is_marked and not is_prompt
        with RENDERING:
            rendered: tuple[list[str], list[list[tuple[int, int]]]] = render_jinja_template(  # type: ignore[assignment]
                conversations=[[{key: value for key, value in m.items() if value is not None} for m in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self._source,
                return_assistant_tokens_mask=is_marked,
                add_generation_prompt=is_prompt,
                **self._variables,
            )
        (text,), marks = rendered
        return text, tuple(marks[0]) if is_marked else ()

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
            prompt, _ = self._rendered([QUESTION], (), is_prompt=True)
            question, answer, followed = (
                self._rendered(messages, (), is_prompt=False)[0]
                for messages in ([QUESTION], [QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION])
            )
        except TemplateSyntaxError as error:
            raise ValueError(f"the chat template is not Jinja: line {error.lineno}: {one_line(error)}") from None
        except FAULTS as error:
            raise ValueError(f"the chat template refuses a plain chat: {one_line(error)}; {FIX}") from None
        if PROBE not in answer:
            raise ValueError(f"the chat template leaves out the assistant's text; {FIX}")
        return Trial(prompt, question, answer, followed)

    def _end_of_turn_token(self, trial: Trial) -> str:
        r"""The token that ends an answer: the last one after it that is there also where a question follows.

            answer    4<|im_end|><|eos|>
            followed  4<|im_end|>\n<|im_start|>user\n...

        gives `<|im_end|>`. Where an answer ends differently once it is followed, the first token after it. Raises
        ValueError where there is none.
        """
        after_answer, followed = (text.rpartition(PROBE)[2] for text in (trial.answer, trial.followed))
        tokens = [(found.group(), found.end()) for found in self._added_token.finditer(after_answer)]
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
            return self._rendered(messages, tools, is_prompt=False)[0]
        except FAULTS:
            return None

    def _end_of_calls(self, text: str | None, start: int) -> tuple[str, ...]:
        """The token that ends an answer of calls, where it is not one of the stop tokens."""
        if text is None or self._end_of_turn(text, start) is not None:
            return ()
        found = list(self._added_token.finditer(text, start))
        return (found[-1].group(),) if found and not text[found[-1].end() :].strip() else ()

    def _require_generated(self, trial: Trial) -> None:
        """Raises ValueError if generation would begin an answer at another place than the template writes it."""
        before_answer = trial.answer.rpartition(PROBE)[0][len(trial.prompt) :]
        if self._opening:
            self._require_opened(trial.prompt)
        elif trial.prompt == trial.question and before_answer.strip():
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

    def _require_shown(self, conversation: Conversation) -> None:
        """Raises BadExample where the template would leave out a part of the conversation silently."""
        if not self._left_out:
            return
        for part in _parts(conversation):
            if part in self._left_out:
                raise BadExample(
                    f"template leaves out {part}",
                    f"{conversation.where}: the chat template leaves out {part}; take them out of the row, or set "
                    "data.chat_template to a Jinja file that writes them",
                )


def _parts(conversation: Conversation) -> Iterator[str]:
    """What a conversation has that not every template writes, by the names of PROBES."""
    if conversation.tools:
        yield "tools"
    for message in conversation.messages:
        yield f"{message['role']} messages"
        if message.get("tool_calls"):
            yield "tool calls"
            if isinstance(message.get("content"), str) and message["content"].strip():
                yield "text beside tool calls"
        if any(message.get(name) for name in REASONING):
            yield "reasoning"


def _trained(marks: Spans, start: int, end: int) -> Spans:
    """The marked spans within an answer [start, end), made to reach its end; all of it where none is marked."""
    within = [(max(first, start), min(last, end)) for first, last in marks if last > start and first < end]
    if not within:
        return ((start, end),)
    return (*within[:-1], (within[-1][0], end))


def _after_opening(message: Message, opening: str, written: str) -> str | None:
    r"""What a model writes after an opening that its prompt has: the message's text after its own opening.

    `Easy.\n</think>\n\n4` of `<think>\nEasy.\n</think>\n\n4`. None if the text does not begin with the
    opening, or does not end with what the template wrote of it, here `4`.
    """
    content = message.get("content")
    if not opening.strip() or not isinstance(content, str) or not content.lstrip().startswith(opening.strip()):
        return None
    rest = content.lstrip().removeprefix(opening.strip()).lstrip("\r\n")
    return next((text for text in (rest, rest.rstrip()) if text.endswith(written.lstrip("\r\n"))), None)


def _num_equal(first: str, second: str) -> int:
    """How many characters two strings begin with in common."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def _call(name: str) -> Mapping[str, Any]:
    return {"id": "call00001", "type": "function", "function": {"name": name, "arguments": {"x": "y"}}}


def _calling(name: str, content: str = "") -> Message:
    return {"role": "assistant", "content": content, "tool_calls": [_call(name)]}


SCHEMA = {"type": "object", "properties": {"x": {"type": "string", "description": "y"}}, "required": ["x"]}
TOOL = {"type": "function", "function": {"name": PROBE, "description": "y", "parameters": SCHEMA}}
RESULT: Message = {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": PROBE}
REPLY: Message = {"role": "assistant", "content": "reply"}

PROBES: Mapping[str, tuple[Sequence[Message], Sequence[Mapping[str, Any]]]] = {
    "tool calls": ((QUESTION, _calling(PROBE)), ()),
    "text beside tool calls": ((QUESTION, _calling("f", PROBE)), ()),
    "tool messages": ((QUESTION, _calling("f"), RESULT, REPLY), ()),
    "tools": ((QUESTION, REPLY), (TOOL,)),
    "system messages": (({"role": "system", "content": PROBE}, QUESTION, REPLY), ()),
    "developer messages": (({"role": "developer", "content": PROBE}, QUESTION, REPLY), ()),
    "reasoning": ((QUESTION, {**REPLY, "reasoning_content": PROBE}), ()),
}
"""What a template may leave out silently -> messages that show whether it does."""
