"""Finished models on disk: written, opened, merged, read from GGUF, with their cards.

`kind` holds what differs between language and reward models.
"""
