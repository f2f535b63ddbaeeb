"""The chat template that our tokenizers carry, in the manner of ChatML: one marked turn after another.

    <|bos|><|im_start|>user
    What is 2 + 2?<|im_end|>
    <|im_start|>assistant
    4<|im_end|>

The `generation` block marks what an assistant turn is trained on: its text and the end of the turn.
"""

from __future__ import annotations

import json

from llmtrain.config.sections import SpecialTokens

# A break at the start of an assistant's text would join the break before it into one token, so that the
# prompt's ids would no longer begin the ids of the whole chat: it is left out.
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] not in ["system", "user", "assistant"] %}
        {{- raise_exception("the chat template knows the roles system, user and assistant, not " ~ message["role"]) }}
    {%- elif message["role"] == "system" and not loop.first %}
        {{- raise_exception("a system message comes first or not at all") }}
    {%- elif message["content"] is not string %}
        {{- raise_exception("the content of a message must be text") }}
    {%- endif %}
    {{- START_OF_TURN + message["role"] + "\\n" }}
    {%- if message["role"] == "assistant" %}
        {%- generation %}
            {{- message["content"].lstrip("\\r\\n") + END_OF_TURN }}
        {%- endgeneration %}
    {%- else %}
        {{- message["content"] + END_OF_TURN }}
    {%- endif %}
    {{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- START_OF_TURN + "assistant\\n" }}
{%- endif %}
"""


def chat_template(tokens: SpecialTokens) -> str:
    """The Jinja source with the turns' marks written into it."""
    start, end = (json.dumps(token, ensure_ascii=False) for token in (tokens.start_of_turn, tokens.end_of_turn))
    return TEMPLATE.replace("START_OF_TURN", start).replace("END_OF_TURN", end)
