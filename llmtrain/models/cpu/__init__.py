"""The CPU's fast path: layers and adapters in fewer passes over memory, with the same results.

`prepare` decides who takes it.
"""
