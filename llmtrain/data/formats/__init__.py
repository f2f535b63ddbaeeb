"""Rows -> examples: which formats people keep rows in, and what a row of each becomes.

`read` is the one loop over a source; `instructions`, `preferences`, `labelled` and `prompts` each have their formats
and their class of example; `messages` reads the ways to write down a dialogue. May import data.sources, data.ledger and
data.split.
"""
