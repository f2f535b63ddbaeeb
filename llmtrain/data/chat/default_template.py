"""The chat template that our tokenizers carry, in the manner of ChatML: one marked turn after another.

    <|bos|><|im_start|>user
    What is 2 + 2?<|im_end|>
    <|im_start|>assistant
    4<|im_end|>

Functions are described in the system turn, results are turns of the role tool. A thought and calls are plain text in
the answer, so that a base model needs no new token to learn them:

    <|im_start|>assistant
    <think>
    A sum.
    </think>

    <tool_call>
    {"name": "add", "arguments": {"x": 2, "y": 2}}
    </tool_call><|im_end|>

The `generation` block marks what an assistant turn is trained on: all of this and the end of the turn.
"""

from __future__ import annotations

import json

from llmtrain.config.tokenizer import SpecialTokens

# A break at the start of an assistant's text would join the break before it into one token, so that the
# prompt's ids would no longer begin the ids of the whole chat: it is left out.
BOS = "{{- bos_token }}\n"
TEMPLATE = """\
{{- bos_token }}
{%- macro functions() %}
    {{- "# Functions\\n\\nYou can call these functions, each described by JSON:\\n<tools>\\n" }}
    {%- for tool in tools %}
        {{- tool|tojson + "\\n" }}
    {%- endfor %}
    {{- "</tools>\\n\\nTo call one, write its name and arguments as JSON:\\n<tool_call>\\n" }}
    {{- '{"name": NAME, "arguments": {ARGUMENT: VALUE}}\\n</tool_call>' }}
{%- endmacro %}
{%- if tools and (not messages or messages[0]["role"] != "system") %}
    {{- START_OF_TURN + "system\\n" + functions() + END_OF_TURN + "\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message["role"] not in ["system", "user", "assistant", "tool"] %}
        {{- raise_exception("the chat template knows system, user, assistant and tool, not " ~ message["role"]) }}
    {%- elif message["role"] == "system" and not loop.first %}
        {{- raise_exception("a system message comes first or not at all") }}
    {%- elif message["content"] is not string %}
        {{- raise_exception("the content of a message must be text") }}
    {%- endif %}
    {{- START_OF_TURN + message["role"] + "\\n" }}
    {%- if message["role"] == "assistant" %}
        {%- generation %}
            {%- if message["reasoning_content"] %}
                {{- "<think>\\n" + message["reasoning_content"].strip("\\r\\n") + "\\n</think>\\n\\n" }}
            {%- endif %}
            {{- message["content"].lstrip("\\r\\n") }}
            {%- for call in message["tool_calls"] or [] %}
                {{- "\\n" if message["content"] or not loop.first else "" }}
                {{- '<tool_call>\\n{"name": ' + call["function"]["name"]|tojson + ', "arguments": ' }}
                {{- call["function"]["arguments"]|tojson + "}\\n</tool_call>" }}
            {%- endfor %}
            {{- END_OF_TURN }}
        {%- endgeneration %}
    {%- else %}
        {{- message["content"] }}
        {%- if tools and message["role"] == "system" %}
            {{- ("\\n\\n" if message["content"] else "") + functions() }}
        {%- endif %}
        {{- END_OF_TURN }}
    {%- endif %}
    {{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- START_OF_TURN + "assistant\\n" }}
{%- endif %}
"""


def chat_template(tokens: SpecialTokens, bos: str | None = None) -> str:
    """The Jinja source with the turns' marks written into it.

    `bos`: the tokenizer's own. One that is the mark of a turn (SmolLM2-Instruct's `<|im_start|>`) is not written again.
    """
    start, end = (json.dumps(token, ensure_ascii=False) for token in (tokens.start_of_turn, tokens.end_of_turn))
    source = TEMPLATE.removeprefix(BOS) if bos == tokens.start_of_turn else TEMPLATE
    return source.replace("START_OF_TURN", start).replace("END_OF_TURN", end)
