"""Bias: likelihoods of texts about one group and another, and scores of reward models for them."""
