"""The loop and what it is made of; it names no objective, dataset, model or recipe.

`loop` steps, evaluates and saves. `optim`, `muon`, `ema` and `schedule` say how weights move; `step_guard` what undoes
a step; `progress`, `checkpoint`, `run_log`, `profile` and `tracking` what is kept of a run. `runtime` is one process
among those that train together; `engines` drive accelerate and DeepSpeed for it.
"""
