"""Bias: scores that reward models give texts about one group and another, and results in words.

Likelihoods of such texts are a kind of task (`eval.tasks.bias`).
"""
