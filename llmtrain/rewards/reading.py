r"""What a reward model reads of a conversation: as it was trained, by llmtrain or elsewhere.

Ours read up to the token that ends the last answer. Others (TRL's, for one) read the whole rendering of their own chat
template, and score its last token:

    <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>      ours
    <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n    others
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmtrain.data.chat.encode import BadExample, ChatEncoder
from llmtrain.data.formats.messages import Conversation
from llmtrain.models.folders.reward import Classifier
from llmtrain.system.files import one_line

Document = Mapping[str, list[int]]
"""`input_ids`, and what else the tokenizer gives for each token."""


@dataclass(frozen=True)
class Reading:
    """How conversations, whose last message is the answer, become documents."""

    description: str
    fingerprint: str  # different wherever conversations would become different documents
    read: Callable[[Sequence[Conversation]], list[Document | BadExample]]


def reading_of(found: Classifier) -> Reading:
    """How a model reads."""
    if found.is_ours:
        return _ours(found.tokenizer)
    tokenizer, has_score_head = found.tokenizer, found.has_score_head
    if tokenizer.chat_template is not None:
        description, read = "the whole text of its chat template, to the last token", _rendered
    elif has_score_head:
        description, read = "prompt, answer and EOS as one text, as it has no chat template", _joined
    else:
        description, read = "prompt and answer as a pair of texts, as it has no chat template", _paired

    backend = tokenizer.backend_tokenizer.to_str() if isinstance(tokenizer, PreTrainedTokenizerFast) else ""
    what = (description, tokenizer.chat_template, tokenizer.special_tokens_map, backend)
    fingerprint = blake2b(repr(what).encode(), digest_size=16).hexdigest()
    return Reading(
        description, fingerprint, lambda conversations: [_made(read, tokenizer, one) for one in conversations]
    )


def _ours(tokenizer: Any) -> Reading:
    encoder = ChatEncoder(tokenizer, plain=tokenizer.chat_template is None, loss_on="last")

    def ended(conversation: Conversation) -> Document | BadExample:
        """A conversation that could not be trained, as a thought that its template opens is not there: scored all the
        same, to the end of its last turn."""
        document = _made(_rendered, tokenizer, conversation)
        if isinstance(document, BadExample):
            return document
        ids = document["input_ids"]
        ends = [place + 1 for place, id_ in enumerate(ids) if id_ in encoder.end_of_turn_ids]
        return {"input_ids": ids[: ends[-1]] if ends else ids}

    def read(conversations: Sequence[Conversation]) -> list[Document | BadExample]:
        has_template = tokenizer.chat_template is not None
        return [
            {"input_ids": encoded[-1].input_ids.tolist()}
            if not isinstance(encoded, BadExample)
            else ended(conversation)
            if has_template
            else encoded
            for conversation, encoded in zip(conversations, encoder.encode(conversations), strict=True)
        ]

    return Reading("up to the end of the last answer, as llmtrain trained it", encoder.fingerprint, read)


def _made(
    read: Callable[[PreTrainedTokenizerBase, Conversation], Any],
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
) -> Document | BadExample:
    """The document of a conversation, or why it has none."""
    try:
        given = read(tokenizer, conversation)
        return {name: list(ids) for name, ids in given.items() if name != "attention_mask"}
    except BadExample as fault:
        return fault
    except Exception as error:  # a template may raise anything
        message = f"{conversation.where}: the reward model's chat template refuses it: {one_line(error)}"
        return BadExample("template refuses the row", message)


def _rendered(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Any:
    messages: Any = list(conversation.messages)
    tools: Any = [dict(tool) for tool in conversation.tools] or None
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True)


def _joined(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Any:
    """As TRL's reward trainer joins texts."""
    prompt, answer = _texts(conversation)
    end = str(tokenizer.eos_token or "")
    return tokenizer(f"{prompt}{answer}" if answer.endswith(end) else f"{prompt}{answer}{end}")


def _paired(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Any:
    return tokenizer(*_texts(conversation))


def _texts(conversation: Conversation) -> tuple[str, str]:
    """The prompt and the answer. Raises BadExample for more messages, and for tools."""
    texts = [message.get("content") for message in conversation.messages]
    roles = [message["role"] for message in conversation.messages]
    match roles, texts:
        case ["user", "assistant"], [str(prompt), str(answer)] if not conversation.tools:
            return prompt, answer
    raise BadExample(
        "conversation without template",
        f"{conversation.where}: the reward model's tokenizer has no chat template, and there is more than a question",
    )
