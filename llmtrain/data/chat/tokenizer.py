"""The tokenizer of a tuning run, with the chat template that its rows are rendered with, and their encoder."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from llmtrain.config.data import ChatDataConfig, TemplatedSourcesConfig
from llmtrain.config.sections import PretrainedModelConfig, TokenizerConfig
from llmtrain.data.chat.arguments import with_arguments, with_fixed_date
from llmtrain.data.chat.choice import choose_template
from llmtrain.data.chat.encode import ChatEncoder, LossOn
from llmtrain.data.chat.system_prompt import require_sent, with_system_prompt
from llmtrain.data.tokenize import load_tokenizer


@dataclass(frozen=True)
class ChatTokenizer:
    """What turns rows into ids and a loss mask."""

    tokenizer: PreTrainedTokenizerFast  # with the chosen template and its tokens
    encoder: ChatEncoder
    new_token_ids: tuple[int, ...]  # tokens that the model has no trained rows for, as the template brings them


def open_chat_tokenizer(
    model: PretrainedModelConfig, tokenizer: TokenizerConfig, data: TemplatedSourcesConfig, loss_on: LossOn
) -> ChatTokenizer:
    """The tokenizer of `model`, or the one that `tokenizer` names, with the chat template that `data` asks for.

    Raises ValueError for a tokenizer or template that cannot be used.
    """
    loaded = load_tokenizer(
        tokenizer.path or model.path,
        tokenizer.revision or model.revision,
        model.trust_remote_code,
        key="model.path" if tokenizer.path is None else "tokenizer.path",
    )
    template, new_tokens = choose_template(loaded, data.chat_template)
    loaded.add_tokens(new_tokens, special_tokens=True)
    loaded.chat_template = template
    if template is not None:
        template = with_fixed_date(with_arguments(template, data.template_kwargs), data.template_date)
        loaded.chat_template = template
    if data.system_prompt is not None and template is not None:
        loaded.chat_template = with_system_prompt(template, data.system_prompt)
        require_sent(loaded, data.system_prompt)
    encoder = ChatEncoder(
        loaded,
        plain=template is None,
        loss_on=loss_on,
        spelt_tokens=data.special_tokens_in_text,
        loss_on_thoughts=data.loss_on_thoughts if isinstance(data, ChatDataConfig) else True,
    )
    return ChatTokenizer(loaded, encoder, tuple(loaded.get_vocab()[token] for token in new_tokens))
