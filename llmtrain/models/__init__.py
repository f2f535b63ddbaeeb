"""Models of `transformers` as they are trained: loading, wrapping, heads, adapters, and folders that others load.

`load` (with `presets`) makes or reads a model; `attention` isolates packed documents; `trunk` is the one way to run
a model on a pack; `param_kinds` and `flops` describe it. Subpackages: `wrappers` (the modules that train), `heads`,
`adapters`, `paths` (how documents run together), `folders` (models on disk), `cpu` (the CPU's fast path).
"""
