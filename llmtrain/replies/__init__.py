"""Replies of a finished model, by `transformers`' own generation: what `chat`, `generate` and `sample` share.

What a policy samples while it trains is in `rollout`.
"""
