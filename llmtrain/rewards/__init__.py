"""Rewards: functions that score responses, and their weighted sum.

`functions` are the computed rewards by name, `model` a trained reward model, `user_function` loads the user's, `score`
calls them all and checks what they return; `sandbox` runs code of responses.
"""
