r"""How a chat template writes a thought and an answer, found by rendering: for tokenizers without a response template.

gpt-oss writes the thought T and the answer C after its prompt, `<|start|>assistant`, as

    <|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final<|message|>C<|return|>

so a reply that begins with what is before T has a thought, which ends where the text between T and C begins. Only forms
of control tokens count: text such as `<think>` is shown as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llmtrain.data.formats.messages import REASONING

QUESTION = {"role": "user", "content": "Hi"}
THOUGHT, ANSWER = "zqthought", "zqanswer"
FAULTS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class WrittenForm:
    """What a template writes around the parts of an answer, after its prompt."""

    key: str  # of a message's thought, as the template reads it
    before: str  # the thought
    between: str  # the thought and the answer
    alone: str  # what is before an answer without a thought
    special: tuple[str, ...]  # tokens that no part may hold

    def parts(self, text: str) -> dict[str, str] | None:
        """A reply's thought and answer, by their keys; None: it is not of this form."""
        if self.before and text.startswith(self.before):
            thought, found, answer = text[len(self.before) :].partition(self.between)
            read = {self.key: thought, "content": answer} if found else {self.key: thought, "content": ""}
        elif self.alone and text.startswith(self.alone):
            read = {"content": text[len(self.alone) :]}
        else:
            return None
        return None if any(token in part for token in self.special for part in read.values()) else read


def written_form(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> WrittenForm | None:
    """The form of a tokenizer's chat template; None: it writes no thought, or not between control tokens."""
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    prompt = _rendered(tokenizer, [QUESTION], arguments, is_prompt=True)
    alone = _after(prompt, _rendered(tokenizer, [QUESTION, _answer({})], arguments))
    for key in REASONING:
        written = _after(prompt, _rendered(tokenizer, [QUESTION, _answer({key: THOUGHT})], arguments))
        if written is None or alone is None or written.count(THOUGHT) != 1 or written.count(ANSWER) != 1:
            continue
        before, _, rest = written.partition(THOUGHT)
        between, found, _ = rest.partition(ANSWER)
        if found and _holds(between, special):
            return WrittenForm(key, before, between, alone.partition(ANSWER)[0], special)
    return None


def _answer(thought: Mapping[str, str]) -> dict[str, str]:
    return {"role": "assistant", "content": ANSWER, **thought}


def _after(prompt: str | None, text: str | None) -> str | None:
    """What a text has after a prompt that it begins with."""
    return text[len(prompt) :] if prompt is not None and text is not None and text.startswith(prompt) else None


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
    *,
    is_prompt: bool = False,
) -> str | None:
    """The text of messages; None: the template refuses them."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=is_prompt, **arguments
        )
    except FAULTS:
        return None
    return text if isinstance(text, str) else None


def _holds(text: str, tokens: Sequence[str]) -> bool:
    return any(token in text for token in tokens)
