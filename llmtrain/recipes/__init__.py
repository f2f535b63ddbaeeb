"""One page per recipe, read from top to bottom: data, model, objective, training, export.

`trainer` opens, trains and closes a run for all of them, `model` is what recipes that tune have in common, `command`
starts a recipe, `rlhf` runs the stages of a file in turn.
"""
