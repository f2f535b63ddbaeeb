"""Ways of training one module with one process or several: plain (one process, DDP, FSDP2), DeepSpeed's ZeRO.

`base` is the protocol of an engine and `table` has a row for each; a new one is a file beside `plain` and `deepspeed`,
and a row. `launch` turns the launcher's environment into accelerate, `state` holds weights and optimizer state by name,
and `watchdog` names the rank that is stuck.
"""
