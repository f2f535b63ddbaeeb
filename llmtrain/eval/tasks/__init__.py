"""Evaluation of a model on tasks: log-likelihoods, generated answers, and the file of results that `compare` reads."""
