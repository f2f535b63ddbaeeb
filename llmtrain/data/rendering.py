r"""A chat template as it writes messages, which are handed to it in the form that it takes.

    {"name": "add", "arguments": {"x": 1}}      most templates write arguments as JSON themselves
    {"name": "add", "arguments": "{\"x\": 1}"}  DeepSeek V3's puts JSON text in its place
    {"type": "text", "text": "Hi"}              templates of models that also see take parts of text
    {"role": "developer", ...}                  OpenAI's newer name of a system message, for templates that know it

The form is found by trying, once per template. Training, rollouts and chat all render here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

from jinja2 import meta, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from llmtrain.config.data import SpeltTokens
from llmtrain.data.formats.call_ids import lacks_ids, with_call_ids
from llmtrain.data.spelt_tokens import ControlTokens
from llmtrain.system.files import one_line

Template = str | Mapping[str, str]
"""One Jinja source, or several by name."""
Spans = tuple[tuple[int, int], ...]  # [start, end) in characters

FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What the expressions of a template raise."""

RENDERING = threading.Lock()
"""The spans of `generation` blocks are kept in a template that all threads share."""

DEFAULT, TOOL_USE = "default", "tool_use"
"""The names by which `transformers` chooses of several templates: the second where there are tools."""

TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
OF_JINJA = ("raise_exception", "strftime_now", "namespace", "range", "dict", "lipsum", "cycler", "joiner")
GIVEN = frozenset(("messages", "tools", "documents", "add_generation_prompt", *TOKENS, *OF_JINJA))
"""What a template reads that is no argument of its own."""

PROBE = "zqx7"
"""A text that no template contains."""
QUESTION: Mapping[str, Any] = {"role": "user", "content": "question"}
ANSWER: Mapping[str, Any] = {"role": "assistant", "content": PROBE}
CALL_ID = "call00001"


def tool_named(name: str) -> Mapping[str, Any]:
    """A tool for a template to be tried with."""
    schema = {"type": "object", "properties": {"x": {"type": "string", "description": "y"}}, "required": ["x"]}
    return {"type": "function", "function": {"name": name, "description": "y", "parameters": schema}}


class Form(NamedTuple):
    """How a template takes what messages hold."""

    has_parts: bool = False  # content is a list of parts
    arguments_as_text: bool = False  # the arguments of a call are JSON in a string
    drops_empty: bool = False  # a message of calls alone has no content, not an empty one
    developer_as_system: bool = False  # it has a place for a system message, and none for a developer's


class Renderer:
    """A template's text of messages, as `apply_chat_template` gives it to whoever hands them over in its form."""

    def __init__(self, source: str, variables: Mapping[str, Any], *, is_for_tools: bool = False) -> None:
        """`variables` are what it may write besides messages (bos_token, ...); one for chats with tools is tried so."""
        self._source, self._variables = source, dict(variables)
        self.tried_with: tuple[Mapping[str, Any], ...] = (tool_named("f"),) if is_for_tools else ()
        self._form = self._found_form(self.tried_with)

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        is_prompt: bool,
        is_marked: bool = False,
        is_begun: bool = False,
    ) -> tuple[str, Spans]:
        """The text, ready for an answer if it `is_prompt`, and the spans of `generation` blocks.

        With `is_begun` it ends where the last message goes on, an answer that is begun. Raises FAULTS.
        """
        written = partial(
            self._rendered, tools=tools, form=self._form, is_prompt=is_prompt, is_marked=is_marked, is_begun=is_begun
        )
        try:
            return written(messages)
        except FAULTS:
            if lacks_ids(messages):  # some templates refuse calls without ids of their form
                with suppress(*FAULTS):  # the first refusal is about the row as it is
                    return written(with_call_ids(messages))
            raise

    @property
    def reads_developer_as_system(self) -> bool:
        """Whether a message of the role developer is written as a system message."""
        return self._form.developer_as_system

    def arguments_like(self, *parts: str) -> list[str]:
        """The variables that the template reads whose names have one of these parts."""
        return sorted(name for name in read_by(self._source) if any(part in name for part in parts))

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        form: Form,
        *,
        is_prompt: bool,
        is_marked: bool = False,
        is_begun: bool = False,
    ) -> tuple[str, Spans]:
        with RENDERING:
            rendered: tuple[list[str], list[list[tuple[int, int]]]] = render_jinja_template(  # type: ignore[assignment]
                conversations=[[in_form(message, form) for message in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self._source,
                return_assistant_tokens_mask=is_marked,
                add_generation_prompt=is_prompt,
                continue_final_message=is_begun,
                **self._variables,
            )
        (text,), marks = rendered
        return text, tuple(marks[0]) if is_marked else ()

    def _found_form(self, tools: Sequence[Mapping[str, Any]]) -> Form:
        """The first form in which a template writes an answer and a call whole; the common one where none is."""
        plain = (QUESTION, ANSWER)
        has_parts = not self._shows(plain, tools, Form(), PROBE) and self._shows(plain, tools, Form(True), PROBE)
        # JSON that is written as JSON before any other notation, as XML's, that a template may make of it.
        as_system = self._reads_system_alone(tools, Form(has_parts))
        for wanted in (("zqname", '"zqkey": "zqvalue"'), ("zqname", "zqkey", "zqvalue")):
            for as_text, drops_empty in product((False, True), repeat=2):
                form = Form(has_parts, as_text, drops_empty, as_system)
                if self._shows((QUESTION, PROBE_CALL), tools, form, *wanted):
                    return form
        return Form(has_parts, developer_as_system=as_system)

    def _reads_system_alone(self, tools: Sequence[Mapping[str, Any]], form: Form) -> bool:
        """Whether a template writes a system message, and a developer's not, or as one of anybody: of an `else`."""
        system, developer, anybody = (
            self._or_none(({"role": role, "content": PROBE}, QUESTION), tools, form)
            for role in ("system", "developer", "zqrole")
        )
        if system is None or PROBE not in system:
            return False
        return developer is None or PROBE not in developer or developer == anybody

    def _or_none(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], form: Form
    ) -> str | None:
        try:
            return self._rendered(messages, tools, form, is_prompt=True)[0]
        except FAULTS:
            return None

    def _shows(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], form: Form, *wanted: str
    ) -> bool:
        """Whether all of `wanted` is in the text, none of it in Python's notation or as JSON within JSON."""
        try:
            text, _ = self._rendered(messages, tools, form, is_prompt=False)
        except FAULTS:
            return False
        wrong = ("'zqkey'", '\\"zqkey', "'type': 'text'", '"type": "text"')
        return all(each in text for each in wanted) and not any(each in text for each in wrong)


PROBE_CALL: Mapping[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": CALL_ID, "type": "function", "function": {"name": "zqname", "arguments": {"zqkey": "zqvalue"}}}
    ],
}


def in_form(message: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """A message as a template of this form takes it, without the keys that have no value."""
    made = {key: value for key, value in message.items() if value is not None}
    if form.developer_as_system and made.get("role") == "developer":
        made["role"] = "system"
    if made.get("tool_calls"):
        made["tool_calls"] = [_call_in_form(call, form) for call in made["tool_calls"]]
        if form.drops_empty and not made.get("content"):
            made.pop("content", None)
    if form.has_parts and isinstance(made.get("content"), str):
        made["content"] = [{"type": "text", "text": made["content"]}]
    return made


def _call_in_form(call: Mapping[str, Any], form: Form) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments", {})
    if form.arguments_as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not form.arguments_as_text and isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    arguments: Mapping[str, Any] | None = None,
    spelt_tokens: SpeltTokens = "warn",
) -> list[int]:
    """The ids of a conversation up to where the model's answer begins, or goes on where the last message begins one.

    `arguments` are the template's own (enable_thinking, ...); those of a run are in its template already.
    `spelt_tokens` is `data.special_tokens_in_text`. Raises ValueError, one line, where the tokenizer has no template,
    the template refuses the messages or never reads an argument, and for a spelt token that is an error;
    UnicodeEncodeError for half a surrogate pair.
    """
    control = control_tokens(tokenizer)
    messages = control.as_asked(messages, spelt_tokens)
    tools = control.tools_as_asked(tools, spelt_tokens)
    text = prompt_text(tokenizer, messages, tools, arguments=arguments)
    text.encode()  # the tokenizer names no fault of half a surrogate pair
    if spelt_tokens == "encode_as_text":
        return control.encoded(text, control.backend)[0]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The text that `prompt_ids` makes ids of. Raises ValueError as it does, but not for spelt tokens."""
    if arguments:
        source = source_for(tokenizer.chat_template, has_tools=bool(tools))
        require_read([source], arguments, "template argument ")
    renderer = renderer_of(tokenizer, arguments, has_tools=bool(tools))
    try:
        is_begun = bool(messages) and messages[-1]["role"] == "assistant"
        return renderer.text(messages, tools, is_prompt=not is_begun, is_begun=is_begun)[0]
    except FAULTS as error:
        raise ValueError(f"the chat template refuses the row: {one_line(error)}") from None


def renderer_of(
    tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None, *, has_tools: bool
) -> Renderer:
    """A tokenizer's template for chats with or without tools. Raises ValueError where there is none."""
    source = source_for(tokenizer.chat_template, has_tools=has_tools)
    is_for_tools = has_tools and TOOL_USE in sources_of(tokenizer.chat_template)
    variables = json.dumps({**tokenizer.special_tokens_map, **(arguments or {})}, default=str)
    return _renderer(source, variables, is_for_tools)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The control tokens of a tokenizer and its chat templates."""
    return _control_tokens(tokenizer, tuple(sources_of(tokenizer.chat_template).values()), len(tokenizer))


@lru_cache(maxsize=2)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, sources: tuple[str, ...], num_tokens: int) -> ControlTokens:
    return ControlTokens(tokenizer, sources)


@lru_cache(maxsize=8)
def _renderer(source: str, variables: str, is_for_tools: bool) -> Renderer:
    return Renderer(source, json.loads(variables), is_for_tools=is_for_tools)


def source_for(template: Template | None, *, has_tools: bool) -> str:
    """The Jinja source that chats with or without tools are written by. Raises ValueError where there is none."""
    sources = sources_of(template)
    if has_tools and TOOL_USE in sources:
        return sources[TOOL_USE]
    if DEFAULT not in sources:
        held = f"several chat templates ({', '.join(sources)}) and no default" if sources else "no chat template"
        raise ValueError(f"the tokenizer has {held}")
    return sources[DEFAULT]


def sources_of(template: Template | None) -> Mapping[str, str]:
    """The Jinja sources of a tokenizer by their names."""
    if template is None:
        return {}
    return {DEFAULT: template} if isinstance(template, str) else template


def require_read(sources: Sequence[str], arguments: Mapping[str, Any], key: str) -> None:
    """Raise ValueError for an argument that no template reads, naming those that they do."""
    read = frozenset().union(*map(read_by, sources)) - GIVEN
    for name in arguments:
        if name in GIVEN:
            raise ValueError(f"{key}{name}: rows and tokenizer give this to the chat template, not the configuration")
        if name not in read:
            known = ", ".join(sorted(read)) or "nothing besides messages and tools"
            raise ValueError(f"{key}{name}: the chat template never reads it; it reads {known}")


@lru_cache(maxsize=8)
def read_by(source: str) -> frozenset[str]:
    """The names that a template reads before it sets them, or without setting them.

    Raises ValueError, one line, for a fault of syntax.
    """
    try:
        tree = _compile_jinja_template(source).environment.parse(source)
    except TemplateSyntaxError as error:
        raise not_jinja(error) from None
    first: dict[str, str] = {}
    for name in _names(tree):
        first.setdefault(name.name, name.ctx)
    return frozenset(name for name in meta.find_undeclared_variables(tree) if first.get(name) != "store")


def not_jinja(error: TemplateSyntaxError) -> ValueError:
    """The fault of a template with a fault of syntax."""
    return ValueError(f"the chat template is not Jinja: line {error.lineno}: {one_line(error)}")


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    """The names of a template in the order in which they are read and set."""
    if isinstance(node, nodes.Name):
        yield node
    for child in reversed([*node.iter_child_nodes()]) if isinstance(node, nodes.Assign) else node.iter_child_nodes():
        yield from _names(child)
