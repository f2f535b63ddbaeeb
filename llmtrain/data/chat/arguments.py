r"""What a chat template is given besides messages, written into the template itself.

So training, rollouts, the exported folder and every tool that opens it render alike; whoever gives another value when
calling `apply_chat_template` is still heard.

    {%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}
    {%- macro strftime_now(format) %}{{- {"%d %b %Y": "26 Jul 2024"}[format] }}{%- endmacro %}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from llmtrain.data.rendering import Template, require_read, sources_of

NOW = "strftime_now"
DAY = "2024-07-26"
"""The day that Llama 3.1's template writes where it cannot ask for today's."""
FIXED = re.compile(r'\{%- macro strftime_now\(format\) %\}\{\{- \{"[^"]*": "([^"]*)".*?\{%- endmacro %\}\n')


def with_arguments(template: Template, arguments: Mapping[str, Any]) -> Template:
    """A template with its own arguments set. Raises ValueError for one that no template of these reads."""
    require_read(list(sources_of(template).values()), arguments, "data.template_kwargs.")
    head = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {literal(value)} %}}{{%- endif %}}\n"
        for name, value in arguments.items()
    )
    return headed(template, head)


def with_fixed_date(template: Template, day: str | None) -> Template:
    """A template that asks for today's date gets this one; None: DAY, or the one that an earlier run fixed.

    Raises ValueError if it asks for it in a format that it computes, and for a day that no template asks for.
    """
    if day is not None and not any(NOW in source for source in sources_of(template).values()):
        raise ValueError(
            f"data.template_date={day} does nothing: the chat template never writes today's date: remove it"
        )
    if isinstance(template, str):
        return _dated(template, day)
    return {name: _dated(source, day) for name, source in template.items()}


def fixed_day(template: Template | None) -> str | None:
    """What a template writes in place of today's date; None: it writes none."""
    found = (FIXED.search(source) for source in sources_of(template).values())
    return next((each.group(1) for each in found if each is not None), None)


def headed(template: Template, head: str) -> Template:
    """A template, or each of several, after a head that writes nothing and ends with a line of its own."""
    if isinstance(template, str):
        return head + template
    return {name: head + source for name, source in template.items()}


def literal(value: Any) -> str:
    """A value of JSON as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(str(name))}: {literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return json.dumps(value, ensure_ascii=False)


def _dated(source: str, day: str | None) -> str:
    if NOW not in source or (day is None and FIXED.search(source)):
        return source
    source, written = FIXED.sub("", source), {}
    for call in _compile_jinja_template(source).environment.parse(source).find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == NOW:
            form = call.args[0] if call.args else None
            if not isinstance(form, nodes.Const):
                raise ValueError("the chat template asks for today's date in a format that it computes: give another")
            written[form.value] = date.fromisoformat(day or DAY).strftime(form.value)
    macro = f"{{%- macro {NOW}(format) %}}{{{{- {literal(written)}[format] }}}}{{%- endmacro %}}\n"
    return macro + source if written else source
