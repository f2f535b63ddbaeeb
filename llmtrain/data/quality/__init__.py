"""What is in the data, before anything is trained on it: the measures of `llmtrain data --report`.

`sample` reads every row once and keeps some; the other files measure those, one question each; `measure` runs them.
"""
