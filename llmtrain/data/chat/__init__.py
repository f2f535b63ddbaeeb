"""Examples -> token ids and a loss mask, by a chat template.

`template` finds each answer in a template's text (`trial`: what it is tried on; `shown`: what it leaves out of rows;
`opening`: answers whose prompt has begun them; `turn`: what is found), `drafts` decides which are trained and which
share a text, `encode` makes ids of the texts. `arguments` and `system_prompt` write a run's settings into the template
that `choice` finds (`default_template` is ours); `tokenizer` opens all of it for a run.
"""
