"""The chat template that a run asks for: the tokenizer's own, ours, none or a file; and those of a tokenizer, tried."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from llmtrain.config.tokenizer import SpecialTokens
from llmtrain.data.chat.default_template import chat_template
from llmtrain.data.chat.template import FIX, ChatTemplate
from llmtrain.data.rendering import DEFAULT, TOOL_USE, Template, source_for, sources_of
from llmtrain.system.files import read_text


def choose_template(tokenizer: PreTrainedTokenizerFast, asked: str) -> tuple[Template | None, list[str]]:
    """The template that data.chat_template asks for, and the special tokens it needs that the tokenizer lacks.

    None: prompt and completion unchanged. Raises ValueError for a file that cannot be read, and for a tokenizer
    with several templates none of which is the default.
    """
    if asked == "none":
        return None, []
    if asked == "auto" and tokenizer.chat_template is not None:
        try:
            source_for(tokenizer.chat_template, has_tools=False)
        except ValueError as error:
            raise ValueError(f"data.chat_template=auto: {error}; {FIX}") from None
        return tokenizer.chat_template, []
    if asked in ("auto", "ours"):
        tokens = SpecialTokens()
        needed = (tokens.start_of_turn, tokens.end_of_turn)
        return chat_template(tokens, tokenizer.bos_token), [
            token for token in needed if not _is_token(tokenizer, token)
        ]
    try:
        return read_text(Path(asked).expanduser()), []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.chat_template={asked} cannot be read ({error}); give auto, ours, none or a Jinja file"
        ) from None


def _is_token(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) == 1


def tried_templates(tokenizer: PreTrainedTokenizerFast) -> dict[str, ChatTemplate]:
    """The tokenizer's templates by name, tried. Raises ValueError if it has none, or one that cannot be used."""
    sources = sources_of(tokenizer.chat_template)
    if DEFAULT not in sources:
        raise ValueError(
            f"the tokenizer has no chat template; {FIX}, or to none for prompts and completions as they are"
        )
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.single_word]
    return {
        name: ChatTemplate(
            sources[name], tokenizer.special_tokens_map, added, tokenizer.eos_token, has_tools=name == TOOL_USE
        )
        for name in (DEFAULT, TOOL_USE)
        if name in sources
    }
