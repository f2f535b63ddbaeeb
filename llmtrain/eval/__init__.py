"""Evaluations on held-out data; calling one with a model returns its values.

`next_token` is the loss of text and chats, `pairs` a reward model on preference pairs, `implied_rewards` a policy on
pairs (DPO), `kto` a policy on labelled answers, `generation` the rewards of sampled responses. `reference_logprobs`
computes a reference's logprobs before training.
"""
