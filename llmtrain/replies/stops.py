"""What ends an answer of a finished model, wherever it is asked: in a chat, for a file, in an evaluation."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.models.stops import Stops, stops_of


def answer_stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Stops:
    """The tokens of the chat template, then the model's own tokens and texts. Raises ValueError as `stops_of`."""
    return stops_of(model, tokenizer, _of_template(tokenizer))


def _of_template(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends an answer according to the chat template; the EOS of a tokenizer whose template cannot be trained."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        try:
            return ChatEncoder(tokenizer, plain=False, loss_on="last").end_of_turn_ids
        except ValueError:
            pass
    return (tokenizer.eos_token_id,) if isinstance(tokenizer.eos_token_id, int) else ()
