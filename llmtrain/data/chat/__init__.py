"""Examples -> token ids and a loss mask, by a chat template.

`template` finds each answer in a template's text, `encode` makes ids of it, `default_template` is ours, `tokenizer`
opens all of it for a run. May import data.formats, data.sources and data.tokenize.
"""
