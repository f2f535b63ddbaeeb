"""Finished models on disk: written, opened, merged, read from GGUF, with their cards.

`kind` holds what differs between language and reward models. May import `adapters`, `heads`, `attention`, `context` and
`wrappers.reward_model` of `models`, besides itself.
"""
