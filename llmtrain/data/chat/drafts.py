r"""Conversations -> the texts that become documents, and which characters of them are trained.

A conversation is one text, unless its template writes earlier turns differently once there are later ones.
`template` finds each turn, `encode` makes ids of the texts.

    <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n    given
    4<|im_end|>                                                   trained
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from llmtrain.data.chat.opening import without_thoughts
from llmtrain.data.chat.template import BadExample, ChatTemplate
from llmtrain.data.chat.turn import Turn
from llmtrain.data.formats.instructions import PlainText
from llmtrain.data.formats.messages import Conversation, Message, asks_nothing
from llmtrain.data.rendering import DEFAULT, TOOL_USE
from llmtrain.data.thoughts import is_unended

Ids = tuple[int, ...]
LossOn = Literal["assistant", "last", "completion", "all"]


@dataclass
class Draft:
    """A text that becomes one document, and one more for each turn that cannot share it."""

    where: str
    text: str
    turns: list[Turn] = field(default_factory=list)  # what is trained; []: everything
    weight: float = 1.0  # of everything, or of what is put around the text
    before: Ids = ()  # put around the text, unless it has them
    after: Ids = ()
    separate: list[Turn] = field(default_factory=list)  # turns whose prompt has other ids in this text than alone
    notes: tuple[str, ...] = ()


NO_THOUGHT = "data.loss_on_thoughts=false leaves nothing out: no answer has a thought, such as <think>...</think>"
AFTER_ANSWERS = "messages after its last answer, left out"


@dataclass(frozen=True)
class Drafting:
    """How a run writes its examples as text, and what it trains of them."""

    templates: Mapping[str, ChatTemplate]  # {}: prompt and completion unchanged
    loss_on: LossOn
    loss_on_thoughts: bool
    before: Ids  # put around a text without template
    after: Ids

    def of_text(self, text: PlainText) -> Draft:
        """A text, all of it trained."""
        notes = () if self.loss_on == "all" else self.unused("a text, of which every token is trained")
        return Draft(text.where, text.text, [], text.weight, self.before, self.after, notes=notes)

    def unused(self, what: str) -> tuple[str, ...]:
        """A note on the keys that choose what is trained of a chat, for a row that is none; mostly nothing."""
        keys = [f"data.loss_on={self.loss_on}"] if self.loss_on != "assistant" else []
        keys += [] if self.loss_on_thoughts else ["data.loss_on_thoughts=false"]
        return (f"{what}, without {' and '.join(keys)}",) if keys else ()

    def of_conversation(self, conversation: Conversation) -> list[Draft]:
        """The texts of a conversation and what is trained in each. Raises BadExample."""
        if not self.templates:
            return [self._completion(conversation)]
        if asks_nothing(conversation.messages):
            raise BadExample("no prompt", f"{conversation.where}: only answers have text, so that nothing is asked")
        template = self.templates.get(TOOL_USE if conversation.tools else DEFAULT, self.templates[DEFAULT])
        if self.loss_on == "all":
            _require_equal_weights(conversation)
            return [Draft(conversation.where, template.text(conversation), weight=conversation.weight)]
        answers = self._answers(conversation)
        turns, has_thoughts = [], False
        for turn in template.turns(conversation, list(answers)):
            without = self._without_thought(turn, conversation.messages[turn.place], conversation.where)
            has_thoughts = has_thoughts or without.trained != turn.trained
            turns.append(replace(without, weight=answers[turn.place]))
        drafts = _shared(turns, conversation.where)
        notes = [note for turn in turns for note in turn.notes]
        notes += [] if self.loss_on_thoughts or has_thoughts else [NO_THOUGHT]
        notes += [] if conversation.messages[-1]["role"] == "assistant" else [AFTER_ANSWERS]
        drafts[0].notes = tuple(dict.fromkeys(notes))
        return drafts

    def _without_thought(self, turn: Turn, message: Message, where: str) -> Turn:
        """A turn without its thought, if thoughts are not trained. Raises BadExample for one that never ends."""
        if self.loss_on_thoughts:
            return turn
        if is_unended(str(message["content"])):
            raise BadExample(
                "thought without an end",
                f"{where}: an answer begins a thought (<think>) and never ends it, so that data.loss_on_thoughts=false "
                "leaves nothing to train",
            )
        return without_thoughts(turn, message)

    def _answers(self, conversation: Conversation) -> dict[int, float]:
        """The places of the answers that are trained, with their weights. Raises BadExample where there is none."""
        where = conversation.where
        answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if self.loss_on == "completion":
            if not conversation.num_prompt:
                raise BadExample(
                    "no completion", f"{where}: the row marks no completion; set data.loss_on=assistant or last"
                )
            answers = [i for i in answers if i >= conversation.num_prompt]
        elif self.loss_on == "last":
            answers = answers[-1:]
        weights = conversation.weights or (1.0,) * len(conversation.messages)
        weighted = {i: weights[i] * conversation.weight for i in answers if weights[i]}
        if not weighted:
            why = "each has the weight 0" if answers else f"data.loss_on={self.loss_on}"
            raise BadExample("no trained token", f"{where}: no answer to train ({why})")
        return weighted

    def _completion(self, conversation: Conversation) -> Draft:
        """A prompt and its completion, unchanged. Raises BadExample for any other conversation."""
        texts = [message.get("content") for message in conversation.messages]
        roles = [message["role"] for message in conversation.messages]
        has_calls = bool(conversation.tools) or any(message.get("tool_calls") for message in conversation.messages)
        if conversation.prompt_text is not None and conversation.num_prompt == len(roles) - 1:
            roles, texts, num_prompt = ["user", *roles[-1:]], [conversation.prompt_text, *texts[-1:]], 1
        else:
            num_prompt = conversation.num_prompt
        match roles, texts:
            case ["user", "assistant"], [str(prompt), str(completion)] if num_prompt == 1 and not has_calls:
                if self.loss_on == "all":
                    _require_equal_weights(conversation)
                weight = conversation.weight * (conversation.weights or (1.0,))[-1]
                text = prompt + completion
                turn = Turn(text, len(prompt), ((len(prompt), len(text)),), weight=weight)
                turns = [] if self.loss_on == "all" else [turn]
                return Draft(conversation.where, text, turns, weight=weight, before=self.before, after=self.after)
        raise BadExample(
            "conversation without template",
            f"{conversation.where}: a conversation needs a chat template; set data.chat_template=auto, ours or a "
            "Jinja file",
        )


def _shared(turns: Iterable[Turn], where: str) -> list[Draft]:
    r"""Turns in as few texts as hold each of them unchanged, in order.

    The text of one turn mostly begins the text of the next, and then both share the longer. A template that takes the
    thoughts off earlier turns needs two texts, for the second does not begin with the first:

        <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\nEasy.\n</think>\n\n4<|im_end|>
        <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n3 + 3? ...
    """
    drafts: list[Draft] = []
    for turn in turns:
        if drafts and turn.text.startswith(drafts[-1].text):
            drafts[-1].text = turn.text
            drafts[-1].turns.append(turn)
        else:
            drafts.append(Draft(where, turn.text, [turn]))
    return drafts


def _require_equal_weights(conversation: Conversation) -> None:
    """Raises BadExample where every token is to be trained, and the row weighs its messages."""
    if conversation.weights:
        raise BadExample(
            "weights of messages",
            f"{conversation.where}: data.loss_on=all trains every token, and the row weighs its messages: set "
            "data.loss_on=assistant, or take the weights out",
        )
