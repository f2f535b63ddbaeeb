"""The tokenizer of a tuning run, with the chat template that its rows are rendered with, and their encoder."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from llmtrain.config.sections import PretrainedModelConfig, TokenizerConfig
from llmtrain.data.chat.encode import ChatEncoder, LossOn, choose_template
from llmtrain.data.tokenize import load_tokenizer


@dataclass(frozen=True)
class ChatTokenizer:
    """What turns rows into ids and a loss mask."""

    tokenizer: PreTrainedTokenizerFast  # with the chosen template and its tokens
    encoder: ChatEncoder
    new_token_ids: tuple[int, ...]  # tokens that the template needed and the vocabulary lacked


def open_chat_tokenizer(
    model: PretrainedModelConfig, tokenizer: TokenizerConfig, *, chat_template: str, loss_on: LossOn
) -> ChatTokenizer:
    """The tokenizer of `model`, or the one that `tokenizer` names, with the chat template of this name.

    `chat_template` and `loss_on` are as in the `data` section of an SFT run.

    Raises ValueError for a tokenizer or template that cannot be used.
    """
    loaded = load_tokenizer(
        tokenizer.path or model.path,
        tokenizer.revision or model.revision,
        model.trust_remote_code,
        key="model.path" if tokenizer.path is None else "tokenizer.path",
    )
    template, new_tokens = choose_template(loaded, chat_template)
    loaded.add_tokens(new_tokens, special_tokens=True)
    loaded.chat_template = template
    encoder = ChatEncoder(loaded, plain=template is None, loss_on=loss_on)
    return ChatTokenizer(loaded, encoder, tuple(loaded.get_vocab()[token] for token in new_tokens))
