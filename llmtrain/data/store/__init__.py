"""Token ids on disk: built once per content, memory-mapped, shared by runs.

`token_store` is the file format, `spec` what a store is made of, `build` finds or builds one, `shards` makes its parts,
which `documents` keeps and puts together. `kinds` makes chats, pairs and labelled answers, `fitting` none longer than
`max_seq_len`, `text` plain text, `ids` rows of ids, both by the tokenizer of `binding`; `derived` keeps arrays that
follow from a store.
"""
