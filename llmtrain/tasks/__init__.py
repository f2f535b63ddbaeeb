"""Evaluation tasks, one file each: data format, prompt and scorer together.

The same task measures a model (`llmtrain eval`), follows a run (`eval.tasks`) and rewards a policy
(`rollout.rewards: [task:gsm8k]`). docs/evaluate.md adds one.
"""
