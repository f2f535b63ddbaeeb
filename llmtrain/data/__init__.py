"""Raw text to memory-mapped tokens to the batches of a step."""
