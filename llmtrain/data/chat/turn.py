"""An answer after its prompt, as text: what `template` finds, `drafts` puts into texts and `encode` makes ids of."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.data.rendering import Spans


@dataclass(frozen=True)
class Turn:
    r"""One answer after its prompt: `<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>`."""

    text: str  # prompt and answer, which ends with a stop token
    start: int  # where the answer begins, in characters: at `4`
    trained: Spans  # `4<|im_end|>`, or what of it the template marks
    place: int = -1  # of the answer among the messages
    joint: int = 0  # the first character of the prompt whose ids could depend on the answer: at `<|im_start|>`
    notes: tuple[str, ...] = ()  # what was assumed, to be counted
    weight: float = 1.0  # of what is trained, in the loss
