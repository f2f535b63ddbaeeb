r"""Replies of a finished model, by `transformers`' own generation: what `chat` and `generate` share.

    messages -> prompt ids -> ids of the reply -> its text -> a message, which the next prompt may hold

The text is what the model wrote, special tokens included, without the token that ended it. Where the tokenizer has a
response template, that says what of the text is a thought, a call or the answer; else `written_form` knows it of some:

    text     <|channel>thought\nEasy.<channel|>4
    message  {"role": "assistant", "reasoning_content": "Easy.", "content": "4"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from llmtrain.data.rendering import prompt_ids
from llmtrain.models.context import num_positions
from llmtrain.models.folders.open import open_model
from llmtrain.models.text_part import num_embeddings, require_rows
from llmtrain.replies.ending import Ending
from llmtrain.replies.stops import answer_stops
from llmtrain.replies.written_form import WrittenForm, written_form
from llmtrain.rewards.score import answer_text, response_text
from llmtrain.system.files import one_line
from llmtrain.system.visible import require_unicode

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ReplyOptions:
    """How replies are drawn."""

    max_new_tokens: int
    temperature: float  # 0: the likeliest token each time
    top_p: float


@dataclass(frozen=True)
class Reply:
    """One reply."""

    response_ids: list[int]
    stopped: bool  # by a stop token, the last of `response_ids`, or a stop text
    text: str  # as the model wrote it, after the `<think>` that its prompt may have opened
    message: dict[str, Any]  # of the assistant: the parts that were found in the text, else the text as content
    problem: str | None = None  # why the response template does not fit the text
    stop_text: str | None = None  # the text that ended it, which its own text is without

    @property
    def content(self) -> str:
        """The answer alone; "" if the reply holds only thoughts or calls."""
        return str(self.message.get("content") or "")

    @property
    def is_parsed(self) -> bool:
        """Whether the message has more than the answer."""
        return bool(set(self.message) - {"role", "content"})


@dataclass(frozen=True)
class Speaker:
    """A finished model that answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ending: Ending
    positions: int | None  # how many tokens the model has positions for; None: any number
    response_template: dict[str, Any] | None = field(default=None)  # the tokenizer's own
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # what its chat template is given besides
    form: WrittenForm | None = None  # how its chat template writes a thought, where there is no response template

    @classmethod
    def opened(cls, path: str, template_kwargs: Mapping[str, Any] | None = None) -> Speaker:
        """The model of a path. Raises ValueError as `open_model` does."""
        model, tokenizer = open_model(path)
        return cls.of(model, tokenizer, template_kwargs)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Speaker:
        """A model that is loaded."""
        template: dict[str, Any] | None = vars(tokenizer).get("response_template")
        ending, arguments = Ending(answer_stops(model, tokenizer), tokenizer), template_kwargs or {}
        chats_without = template is None and tokenizer.chat_template is not None
        form = written_form(tokenizer, arguments) if chats_without else None
        return cls(model, tokenizer, ending, num_positions(model.config), template, arguments, form)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Tools = ()) -> list[int]:
        """The ids of a chat so far, up to where the model's answer begins.

        Raises ValueError where the tokenizer has no chat template, the template refuses the messages or does not read
        an argument, and if the ids leave no room for an answer.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.tokenizer.name_or_path} has no chat template, so it cannot chat: `llmtrain sample` continues a "
                "text"
            )
        require_unicode(json.dumps([list(messages), list(tools)], ensure_ascii=False, default=str), "a message")
        ids = prompt_ids(self.tokenizer, messages, tools, arguments=self.template_kwargs)
        if not ids:
            raise ValueError("the chat template writes nothing of these messages: there is nothing to answer")
        require_rows(self.model, ids, self.tokenizer)
        if self.room(ids) == 0:
            raise ValueError(
                f"a prompt of {len(ids):,} tokens leaves no room for an answer: the model has {self.positions:,} "
                "positions"
            )
        return ids

    def special_tokens_in(self, reply: Reply) -> list[str]:
        """The special tokens that an answer holds as text."""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return [token for token in special if token in reply.content]

    def room(self, prompt: Sequence[int]) -> int | None:
        """How many tokens may follow a prompt; None: any number."""
        return None if self.positions is None else max(0, self.positions - len(prompt))

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        """Whether so many tokens may follow a prompt."""
        room = self.room(prompt)
        return room is None or max_new_tokens <= room

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        options: ReplyOptions,
        tools: Sequence[Tools] | None = None,
        streamer: BaseStreamer | None = None,
    ) -> list[Reply]:
        """The reply to each prompt, as one batch: at most `max_new_tokens`, and as many as the longest leaves room for.

        `tools`: those that each prompt offers. Prompts are not empty, and leave room for a token at least.
        """
        width = max(len(prompt) for prompt in prompts)
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        pad = next((id_ for id_ in known if id_ is not None and id_ < num_embeddings(self.model)), 0)
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if options.temperature > 0:
            settings = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
        room = None if self.positions is None else self.positions - width
        with torch.inference_mode():
            generate: Any = self.model.generate
            output = generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=options.max_new_tokens if room is None else min(options.max_new_tokens, room),
                pad_token_id=pad,
                streamer=streamer,
                **settings,
                **self.ending.settings(width),
            )
        offered = [()] * len(prompts) if tools is None else tools
        written = output[:, width:].tolist()
        return [self._reply(*one) for one in zip(prompts, written, offered, strict=True)]

    def _reply(self, prompt: Sequence[int], written: list[int], tools: Tools) -> Reply:
        """A reply to a prompt; `written`: its ids, with padding after the token that ends it."""
        end = self.ending.of(written)
        reply = Reply(written[: end.num_tokens], end.stopped, "", {}, stop_text=end.stop_text)
        text = answer_text(prompt, reply, self.tokenizer)
        message, problem = self._message(prompt, reply, text, tools)
        return replace(reply, text=text, message=message, problem=problem)

    def _message(
        self, prompt: Sequence[int], reply: Reply, text: str, tools: Tools
    ) -> tuple[dict[str, Any], str | None]:
        """What the response template makes of a reply, and why it makes nothing of it."""
        plain = {"role": "assistant", "content": text}
        if self.response_template is None:
            parts = None if self.form is None else self.form.parts(text)
            return plain if parts is None else {"role": "assistant", **parts}, None
        try:
            written = reply.response_ids if reply.stop_text is None else response_text(reply, self.tokenizer)
            parsed = self.tokenizer.parse_response(written, prefix=list(prompt), tools=[dict(tool) for tool in tools])
        except Exception as error:  # templates are data, and their parsers raise anything
            return plain, one_line(error)
        if text.strip() and not any(value for key, value in parsed.items() if key != "role"):
            return plain, "nothing is left of it"
        return {"role": "assistant", "content": "", **parsed}, None
