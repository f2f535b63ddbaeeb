"""Many runs of a recipe: cross-validation, and the search for good settings.

A run here is a recipe started as a user starts it, unchanged, in a process of its own (`child`); what is known of it is
read from its folder. `crossval` trains on all folds of the data but one, in turn, `sweep` tries settings.
"""
