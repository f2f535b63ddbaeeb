"""The search for good settings: many trials, each a real run of a recipe, compared by their held-out loss.

`target` is what is tuned, `space` what varies, `suggest` draws the next setting, `study` keeps the trials, `run` starts
and watches the run of one, `search` goes on until the budget is spent, `auto` proposes a space and a budget. `command`
puts them together; `page`, `drawings`, `influence` and `words` report.
"""
