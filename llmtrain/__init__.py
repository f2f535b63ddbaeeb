"""Raw text to an aligned chat model with one training loop.

Each package imports only those to its left, which `tests/unit/test_imports.py` checks; docs/architecture.md is the map.

    config, batch, protocols, system, statistics < data | models | objectives | train | launch < tokenizers, rewards <
    tasks < rollout | replies < eval < runs < recipes < prove | tune < cli

(`prove` is a place for what comes.)
"""
