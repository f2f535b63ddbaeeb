"""The chat templates of well-known families in their layout, each with a small tokenizer that has its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llmtrain.tokenizers.bpe import split_pattern

WORDS = (
    "system user assistant model tool tools question answer think the a is are be you in of and to Be Hi Hello Bye "
    "there brief kind please name city role add f x y sun Paris sky blue USER ASSISTANT helper You are"
)
"""Each of these is one token, with and without a space before it."""
OTHER_PIECES = ("\n", "\n\n", "\n\n\n", "  ", ".", ".\n", "!", "?", ",", ":", '{"', '":', ' {"', "}}", "}}\n")


@dataclass(frozen=True)
class Family:
    """A template, and the tokens that its tokenizers have."""

    template: str
    special: tuple[str, ...]  # BOS and EOS among them
    bos: str | None
    eos: str
    plain: tuple[str, ...] = ()  # added tokens that are not special
    takes_space: bool = False  # the special tokens take the white space after them, as Phi-3's do


LLAMA3 = Family(
    special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    template="""\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.tool_calls is defined and m.tool_calls|length != 1 %}
        {{- raise_exception("one call at a time") }}
    {%- endif %}
    {%- set role = "ipython" if m.role == "tool" else m.role %}
    {{- "<|start_header_id|>" + role + "<|end_header_id|>\\n\\n" }}
    {%- if m.tool_calls is defined %}
        {%- set f = m.tool_calls[0].function %}
        {{- '{"name": "' + f.name + '", "parameters": ' + f.arguments|tojson + "}<|eot_id|>" }}
    {%- elif m.role == "tool" %}
        {{- m.content|tojson + "<|eot_id|>" }}
    {%- else %}
        {{- m.content|trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
""",
)

QWEN25 = Family(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    plain=("<tool_call>", "</tool_call>"),
    bos=None,
    eos="<|im_end|>",
    template="""\
{%- set first = messages[0].content if messages[0]["role"] == "system" else "You are a helper." %}
{{- "<|im_start|>system\\n" + first }}
{%- if tools %}
    {{- "\\n\\n<tools>" }}
    {%- for t in tools %}
        {{- "\\n" + t|tojson }}
    {%- endfor %}
    {{- "\\n</tools>" }}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- for m in messages %}
    {%- if m.role == "user" or m.role == "system" and not loop.first %}
        {{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}
    {%- elif m.role == "assistant" %}
        {{- "<|im_start|>assistant" }}
        {%- if m.content %}
            {{- "\\n" + m.content }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments|tojson + "}\\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>\\n" }}
    {%- elif m.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- "<|im_start|>user" }}
        {%- endif %}
        {{- "\\n<tool_response>\\n" + m.content + "\\n</tool_response>" }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- "<|im_end|>\\n" }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
""",
)

QWEN3 = Family(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    bos=None,
    eos="<|im_end|>",
    template="""\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}
    {%- if m.role == "user" %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- "<|im_start|>system\\n" + tools|tojson + "<|im_end|>\\n" }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == "assistant" %}
        {%- set thought = m.reasoning_content or "" %}
        {%- set said = m.content %}
        {%- if not thought and "</think>" in said %}
            {%- set thought = said.split("</think>")[0].split("<think>")[-1].strip("\\n") %}
            {%- set said = said.split("</think>")[-1].lstrip("\\n") %}
        {%- endif %}
        {{- "<|im_start|>assistant\\n" }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- "<think>\\n" + thought.strip("\\n") + "\\n</think>\\n\\n" + said.lstrip("\\n") }}
        {%- else %}
            {{- said }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {{- "<tool_call>\\n" + call.function|tojson + "\\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
""",
)

GEMMA = Family(
    special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<eos>",
    template="""\
{{- bos_token }}
{%- if messages[0]["role"] == "system" %}
    {{- raise_exception("no system role here") }}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set role = "model" if m.role == "assistant" else m.role %}
    {{- "<start_of_turn>" + role + "\\n" + m.content|trim + "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<start_of_turn>model\\n" }}
{%- endif %}
""",
)

MISTRAL = Family(
    special=("<s>", "</s>", "[INST]", "[/INST]"),
    bos="<s>",
    eos="</s>",
    template="""\
{%- set rest = messages[1:] if messages[0]["role"] == "system" else messages %}
{%- set first = messages[0].content + "\\n\\n" if messages[0]["role"] == "system" else "" %}
{{- bos_token }}
{%- for m in rest %}
    {%- if (m.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("after the optional system message, roles must alternate") }}
    {%- elif m.role == "user" %}
        {{- "[INST] " + (first if m == (rest|selectattr("role", "equalto", "user")|list)[-1] else "") }}
        {{- m.content + "[/INST]" }}
    {%- else %}
        {{- " " + m.content|trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
)

MARKED_CHATML = Family(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos=None,
    eos="<|endoftext|>",
    template="""\
{%- for m in messages %}
    {{- "<|im_start|>" + m.role + "\\n" }}
    {%- if m.role == "assistant" %}
        {%- generation %}
            {{- m.content + "<|im_end|>" }}
        {%- endgeneration %}
    {%- else %}
        {{- m.content + "<|im_end|>" }}
    {%- endif %}
    {{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
""",
)

SMOLLM2 = Family(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos="<|im_start|>",
    eos="<|im_end|>",
    template="""\
{%- for m in messages %}
    {%- if loop.first and m.role != "system" %}
        {{- "<|im_start|>system\\nYou are kind<|im_end|>\\n" }}
    {%- endif %}
    {{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
""",
)

PHI3 = Family(
    special=("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    bos="<s>",
    eos="<|endoftext|>",
    takes_space=True,
    template="""\
{%- for m in messages %}
    {{- "<|" + m.role + "|>\\n" + m.content + "<|end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|assistant|>\\n" }}
{%- else %}
    {{- eos_token }}
{%- endif %}
""",
)

DEEPSEEK_R1 = Family(
    special=("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"),
    plain=("<think>", "</think>"),
    bos="<|begin|>",
    eos="<|end|>",
    template="""\
{{- bos_token }}
{%- for m in messages if m.role == "system" %}
    {{- m.content }}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == "user" %}
        {{- "<|User|>" + m.content }}
    {%- elif m.role == "assistant" %}
        {{- "<|Assistant|>" + m.content.split("</think>")[-1] + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|Assistant|><think>\\n" }}
{%- endif %}
""",
)

GLM4 = Family(
    special=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    bos=None,
    eos="<|endoftext|>",
    template="""\
{{- "[gMASK]<sop>" }}
{%- if tools %}
    {{- "<|system|>\\n# tools" }}
    {%- for t in tools %}
        {{- "\\n## " + t.function.name + "\\n" + t.function|tojson }}
    {%- endfor %}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == "tool" %}
        {{- "<|observation|>\\n" + m.content }}
    {%- elif m.role == "assistant" and m.tool_calls %}
        {%- for call in m.tool_calls %}
            {{- "<|assistant|>" + call.function.name + "\\n" + call.function.arguments|tojson }}
        {%- endfor %}
    {%- else %}
        {{- "<|" + m.role + "|>\\n" + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|assistant|>" }}
{%- endif %}
""",
)
"""Each turn is ended by the mark of the next one: `<|user|>`, or `<|observation|>` after a call."""

MISTRAL_V3 = Family(
    special=(
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    bos="<s>",
    eos="</s>",
    template="""\
{%- set first = messages[0].content if messages[0].role == "system" else none %}
{%- set rest = messages[1:] if messages[0].role == "system" else messages %}
{%- set asked = rest|selectattr("role", "equalto", "user")|list %}
{%- set spoken = rest|rejectattr("role", "equalto", "tool")|selectattr("tool_calls", "undefined")|list %}
{%- for m in spoken %}
    {%- if (m.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("after the optional system message, roles must alternate") }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in rest %}
    {%- if m.role == "user" %}
        {%- if tools and m == asked[-1] %}
            {{- "[AVAILABLE_TOOLS] " + tools|tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + (first + "\\n\\n" if loop.last and first is not none else "") + m.content + "[/INST]" }}
    {%- elif m.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in m.tool_calls %}
            {%- if call.id is not string or call.id|length != 9 %}
                {{- raise_exception("a call needs an id of 9 characters") }}
            {%- endif %}
            {{- '{"name": ' + call.function.name|tojson + ', "arguments": ' + call.function.arguments|tojson }}
            {{- ', "id": ' + call.id|tojson + "}" + (", " if not loop.last else "") }}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif m.role == "tool" %}
        {{- "[TOOL_RESULTS] " + m.content|tojson + "[/TOOL_RESULTS]" }}
    {%- else %}
        {{- " " + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
""",
)
"""The system message is in the last question, as long as nothing follows that."""

SMOLLM3 = Family(
    special=("<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    bos=None,
    eos="<|im_end|>",
    template="""\
{%- set thinks = enable_thinking if enable_thinking is defined else true %}
{%- set given = messages[0].content if messages[0].role == "system" else "Be kind." %}
{{- "<|im_start|>system\\n" + strftime_now("%d %B %Y") + (" /think\\n" if thinks else " /no_think\\n") + given }}
{%- if xml_tools %}
    {%- for t in xml_tools %}
        {{- "\\n" + t|tojson }}
    {%- endfor %}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- for m in messages %}
    {%- if m.role == "user" %}
        {{- "<|im_start|>user\\n" + m.content + "<|im_end|>\\n" }}
    {%- elif m.role == "assistant" %}
        {{- "<|im_start|>assistant\\n" + ("" if thinks else "<think>\\n\\n</think>\\n") }}
        {{- m.content.lstrip("\\n") + "<|im_end|>\\n" }}
    {%- elif m.role == "tool" %}
        {{- "<|im_start|>user\\n" + m.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" + ("" if thinks else "<think>\\n\\n</think>\\n") }}
{%- endif %}
""",
)
"""One system message, the first; calls are left out; today's date is written; tools come as `xml_tools`."""

SPOKEN = Family(
    special=("<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    template="""\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == "assistant" %}
        {{- "ASSISTANT: " + m.content + eos_token }}
    {%- else %}
        {{- m.role|upper + ": " + m.content + "\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "ASSISTANT: " }}
{%- endif %}
""",
)
"""No tokens but BOS and EOS, and a space before each answer that a word would take along."""

FAMILIES = {
    "Llama-3": LLAMA3,
    "Qwen2.5": QWEN25,
    "Qwen3": QWEN3,
    "Gemma": GEMMA,
    "Mistral": MISTRAL,
    "marked ChatML": MARKED_CHATML,
    "SmolLM2": SMOLLM2,
    "Phi-3": PHI3,
    "DeepSeek-R1": DEEPSEEK_R1,
    "spoken": SPOKEN,
}


@cache
def _backend(special: Sequence[str], bos: str | None) -> str:
    """A byte-level BPE as Llama 3 has it: its places of tokens leave white space out, and it adds BOS to plain text."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(split_pattern(split_digits=True)), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = WORDS.split()
    tokenizer.train_from_iterator(4 * [*words, *(f" {word}" for word in words), *OTHER_PIECES], trainer)
    trims = processors.ByteLevel(trim_offsets=True)
    if bos is None:
        tokenizer.post_processor = trims
    else:
        adds = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([trims, adds])
    return tokenizer.to_str()


def family_tokenizer(family: Family, template: str | None = None) -> PreTrainedTokenizerFast:
    """A new tokenizer with a family's tokens, and its template or another one."""
    backend = Tokenizer.from_str(_backend(family.special, family.bos))
    if family.takes_space:
        backend.add_special_tokens([AddedToken(token, rstrip=True, special=True) for token in family.special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        chat_template=template if template is not None else family.template,
    )
