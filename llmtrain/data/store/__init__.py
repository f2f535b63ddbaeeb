"""Token ids on disk: built once per content, memory-mapped, shared by runs.

`token_store` is the file format, `build` finds or builds a store under its lock, `writer` appends to an unfinished one,
`units` goes on with an earlier build, `kinds` writes chats, pairs and labelled answers, `text` plain text; `derived`
keeps arrays that follow from a store. May import data.formats, data.chat and data.sources.
"""
