"""The `llmtrain` command: `main` finds the verb, one file per tool, `train` for the recipes.

May import everything else; nothing imports it. Tools are imported only when their verb is used.
"""
