"""Experience for PPO and its variants: prompts -> responses -> scores -> advantages -> minibatches.

`source` is the batch source that the loop pulls from; `sample`, `shaping`, `experience`, `packing` and `minibatches`
are its steps in this order; `state` is its checkpoint. `engine` is the protocol of a generation engine, `local` the
one that generates with the policy's own module.
"""
