"""Ways of training one module with one process or several: plain (one process, DDP), DeepSpeed's ZeRO, FSDP2.

`base` is the protocol of an engine and `table` has a row for each; a new one is a file beside `fsdp` and a row.
`launch` turns the launcher's environment into accelerate, `state` holds weights and optimizer state by name, and
`watchdog` names the rank that is stuck. Imports what `train` may, and accelerate and deepspeed.
"""
