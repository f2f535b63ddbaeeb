"""The schema of a run, and how a command line becomes one.

`sections` and `rl` hold the keys, `recipes` the rules between them, `load` and `stages` read a file with its overrides,
`shipped` finds the configurations that come with the package, `help`, `nearest` and `other_tools` word what the user
reads.

Imports `system` only, and no torch, so that a wrong command is refused at once.
"""
