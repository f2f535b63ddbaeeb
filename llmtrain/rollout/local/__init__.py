"""The local generation engine: the policy's own module samples, on the device that it trains on.

`generator` is the engine, `generate` its decoding loop, `forward` the model's forwards, `cache` its keys and values,
`sampling` and `noise` how a token is sampled. `cpu_decoder` and `cpu_linear` are the CPU's fast path.
"""
