"""Rows -> examples: which formats people keep rows in, and what a row of each becomes.

`read` is the one loop over a source, through its `naming`; `instructions` (its table: `row_formats`), `preferences`
(`preference_formats`), `labelled` and `prompts` (`asked`) each have their formats and their class of example.
`messages` reads the ways to write down a dialogue: `roles`, `weights`, `marked`, `trees`.
"""
